"A hub on the loopback interface: enough of the Hugging Face protocol for the real client to download from it."
import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def handler(files, requests):
    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body):
            requests.append((self.command, self.path))
            content = files.get(self.path)
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body: self.wfile.write(content)

        def do_HEAD(self): self.answer(body=False)
        def do_GET(self): self.answer(body=True)
        def log_message(self, *args): pass

    return Hub


@contextmanager
def loopback_hub(files):
    "Serve `{repo: bytes of model.safetensors}`; gives the address, and the list of requests as they come."
    requests = []
    paths = {f"/{repo}/resolve/main/model.safetensors": content for repo, content in files.items()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(paths, requests))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try: yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
