// Node's server: it announces its keep-alive.
const fs = require("fs");
const server = require("http").createServer((request, response) => {
  request.resume().on("end", () => {
    fs.appendFileSync(process.env.COUNT, "1\n");
    response.end("ok");
  });
});
server.keepAliveTimeout = 2000;
server.listen(Number(process.env.PORT), "127.0.0.1");
