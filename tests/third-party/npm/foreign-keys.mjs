// Prints a key set with a fresh RSA key under the key ids of the set given on standard input.
import { readFileSync } from "node:fs";
import { exportJWK, generateKeyPair } from "jose";

const { keys } = JSON.parse(readFileSync(0, "utf8"));
const { publicKey } = await generateKeyPair("RS256", { extractable: true });
const foreign = await exportJWK(publicKey);
console.log(JSON.stringify({ keys: keys.map(({ kid, alg, use }) => ({ ...foreign, kid, alg, use })) }));
