// Node's server: HTTP/1.1, and it announces its keep-alive; with CERT and KEY, HTTP/2 by TLS.
const fs = require("fs");
const { PORT, COUNT, KEEP_ALIVE, CERT, KEY } = process.env;
const idle = Number(KEEP_ALIVE) * 1000;
const sessions = new Set();
let isClosing = false;

const answer = (request, response) => {
  request.resume().on("end", () => {
    fs.appendFileSync(COUNT, request.headers["retry-id"] + "\n");
    if (isClosing && !CERT) response.setHeader("connection", "close");
    response.end("ok");
  });
};

let server;
if (CERT) {
  const tls = { cert: fs.readFileSync(CERT), key: fs.readFileSync(KEY) };
  server = require("http2").createSecureServer(tls, answer);
  server.on("session", (session) => {
    sessions.add(session);
    session.on("close", () => sessions.delete(session));
    session.setTimeout(idle, () => session.close());
  });
} else {
  server = require("http").createServer(answer);
  server.keepAliveTimeout = idle;
}
// In good order: no further connection, and those there are when they are idle.
process.on("SIGTERM", () => {
  isClosing = true;
  server.close(() => process.exit(0));
  for (const session of sessions) session.close();
});
server.listen(Number(PORT), "127.0.0.1");
