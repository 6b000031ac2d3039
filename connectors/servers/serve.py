"""Python's own server, which closes idle connections after KEEP_ALIVE seconds; and the same as an application for uvicorn and gunicorn."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def count(task):
    with open(os.environ["COUNT"], "a") as file:
        file.write(task + "\n")


async def asgi(scope, receive, send):
    """For uvicorn."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    count(dict(scope["headers"])[b"retry-id"].decode())
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def wsgi(environ, start_response):
    """For gunicorn."""
    environ["wsgi.input"].read()
    count(environ["HTTP_RETRY_ID"])
    start_response("200 OK", [("content-length", "2")])
    return [b"ok"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = float(os.environ.get("KEEP_ALIVE", "1"))

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        count(self.headers["retry-id"])
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


if __name__ == "__main__":
    Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
