// Verifies an assertion with the `jose` library. Prints the claims, or the error's code with exit status 1.
// Standard input: {"token", "jwks", "issuer", "audience"}
import { readFileSync } from "node:fs";
import { createLocalJWKSet, jwtVerify } from "jose";

const { token, jwks, issuer, audience } = JSON.parse(readFileSync(0, "utf8"));
try {
  const { payload, protectedHeader } = await jwtVerify(token, createLocalJWKSet(jwks), {
    issuer,
    audience,
    algorithms: ["RS256"],
  });
  console.log(JSON.stringify({ header: protectedHeader, claims: payload }));
} catch (error) {
  console.log(error.code ?? String(error));
  process.exitCode = 1;
}
