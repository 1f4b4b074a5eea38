"""What a cluster has around our programs, in one process on loopback: the API server's EndpointSlices, a site with
inputs, and a worker that fails."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(handler, host="127.0.0.1", port=0):
    server = ThreadingHTTPServer((host, port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def api_server(endpoints, port_of_workers):
    """Lists one slice of the service `workers`, and then has nothing to tell. Answers its port, and what breaks it."""
    broken = threading.Event()
    slice_ = {
        "metadata": {"name": "workers-1", "namespace": "millrace", "labels": {"kubernetes.io/service-name": "workers"}, "resourceVersion": "1"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True, "serving": True, "terminating": False}} for ip in endpoints],
        "ports": [{"name": "http", "port": port_of_workers, "protocol": "TCP"}],
    }

    class Api(Handler):
        def do_GET(self):
            if broken.is_set():
                return self.answer(500, b"{}")
            if "watch=true" not in self.path:
                listed = {"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": {"resourceVersion": "1"}, "items": [slice_]}
                return self.answer(200, json.dumps(listed).encode())
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            broken.wait(600)
            self.close_connection = True

    return serve(Api), broken


def site(clip):
    """`/clip.mp4` is a film, `/trickle` one that never comes."""

    class Site(Handler):
        def do_GET(self):
            if self.path == "/clip.mp4":
                return self.answer(200, clip, "video/mp4")
            self.send_response(200)
            self.send_header("content-type", "video/mp4")
            self.send_header("content-length", "1000000")
            self.end_headers()
            try:
                for _ in range(600):
                    self.wfile.write(b"\0")
                    self.wfile.flush()
                    time.sleep(0.5)
            except OSError:
                pass

    return serve(Site)


def failing_worker(host, port, report):
    """Says that it is free and fails every submit. Answers what takes it down."""
    sequence, down = [0], threading.Event()

    class Failing(Handler):
        def do_GET(self):
            if down.is_set() or self.path != "/load":
                return self.answer(500, b"{}")
            sequence[0] += 1
            said = report | {"worker": "failing", "running": 0, "queued": 0, "work_seconds": 0.0, "sequence": sequence[0]}
            self.answer(200, json.dumps(said).encode())

        def do_POST(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.answer(500, b"{}")

    serve(Failing, host, port)
    return down
