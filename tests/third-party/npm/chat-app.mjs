// A private WebSocket application: greets with the user the access node vouches for, then echoes every message.
// Standard input: {"host": "...", "port": 9001}
import { readFileSync } from "node:fs";
import { WebSocketServer } from "ws";

const { host, port } = JSON.parse(readFileSync(0, "utf8"));
const server = new WebSocketServer({ host, port });
server.on("listening", () => console.log("listening"));
server.on("connection", (socket, request) => {
  const user = request.headers["cf-access-authenticated-user-email"] ?? "nobody";
  console.log(`connected ${user}`);
  socket.send(`hello ${user}`);
  socket.on("message", (data) => socket.send(data.toString()));
  socket.on("close", () => console.log(`closed ${user}`));
  socket.on("error", () => {});
});
