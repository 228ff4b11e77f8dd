// A WebSocket client that stays open and sends a number every 50 ms. Prints one line for each thing that happens,
// each with the time in milliseconds since 1970: `open`, `message <text>`, `refused <status>`, `closed <code>`.
// Standard input: {"url", "address", "ca", "cookie", "origin"}; `address` is what the host name resolves to.
import { readFileSync } from "node:fs";
import { isIPv6 } from "node:net";
import WebSocket from "ws";

const { url, address, ca, cookie, origin } = JSON.parse(readFileSync(0, "utf8"));
const family = isIPv6(address) ? 6 : 4;
const lookup = (_host, options, done) =>
  options.all ? done(null, [{ address, family }]) : done(null, address, family);
const say = (text) => console.log(`${Date.now()} ${text}`);

const socket = new WebSocket(url, { lookup, ca, headers: { cookie }, origin, handshakeTimeout: 10_000 });
let count = 0;
let timer;
socket.on("open", () => {
  say("open");
  timer = setInterval(() => socket.send(String(count++)), 50);
});
socket.on("message", (data) => say(`message ${data}`));
socket.on("unexpected-response", (_request, response) => {
  say(`refused ${response.statusCode}`);
  process.exit(0);
});
socket.on("error", (error) => say(`error ${error.code ?? error.message}`));
socket.on("close", (code) => {
  clearInterval(timer);
  say(`closed ${code}`);
});
