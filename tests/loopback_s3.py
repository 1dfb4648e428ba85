"An S3 server on loopback: moto's, one writer of an object at a time as S3 has it, and with faults on demand."
import os
import random
import socket
import threading
import time
from contextlib import contextmanager
from wsgiref.types import StartResponse

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "models"


class Quiet(WSGIRequestHandler):
    def log(self, *arguments): pass


class Faulty:
    "Every request with a chance to fail: before it was carried out, after it, by silence, or by a lost connection."
    def __init__(self):
        self.app, self.lock, self.random = DomainDispatcherApplication(create_backend_app), threading.Lock(), random.Random(0)
        self.chance, self.kinds, self.injected, self.silence, self.ignores = 0.0, ("500", "503", "after", "lost", "silent"), [], 3.0, False

    def __call__(self, environ, start: StartResponse):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self.lock:
            kind = self.random.choice(self.kinds) if self.random.random() < self.chance and "moto-api" not in path else None
            if kind: self.injected.append((kind, method))
        if self.ignores: environ.pop("HTTP_IF_NONE_MATCH", None)
        if kind in ("500", "503"): environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)); return self.error(kind, start)
        if kind == "silent": time.sleep(self.silence)
        if kind == "lost": return self.hang_up(environ, start)
        with self.lock:  # S3 carries out the writes of one object in some order
            answer = list(self.app(environ, start if kind != "after" else lambda *_: None))
        return self.hang_up(environ, start) if kind == "after" else answer

    def error(self, code, start):
        body = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an internal error. Please try again.</Message></Error>"
        start(f"{code} Injected", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    def hang_up(self, environ, start):
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start("500 Lost", [])
        return [b""]


@contextmanager
def loopback_s3():
    "A server with an empty bucket; gives it, and the options that open it."
    faulty = Faulty()
    server = make_server("127.0.0.1", 0, faulty, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    options = {"key": "test", "secret": "test", "endpoint_url": f"http://127.0.0.1:{server.port}",
               "client_kwargs": {"region_name": "us-east-1"}, "config_kwargs": {"read_timeout": 2, "connect_timeout": 2}}
    try:
        import boto3
        boto3.client("s3", endpoint_url=options["endpoint_url"], aws_access_key_id="test", aws_secret_access_key="test",
                     region_name="us-east-1").create_bucket(Bucket=BUCKET)
        yield faulty, options
    finally:
        faulty.chance = 0
        server.shutdown()
        thread.join(10)


if __name__ == "__main__":
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    with loopback_s3() as (server, options):
        print(options["endpoint_url"], flush=True)
        time.sleep(3600)
