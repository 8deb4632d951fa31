"""A server that understands as much of wandb's protocol as its client needs to begin, resume and finish a run."""

import gzip
import json
import os
import re
import sys
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

_PROJECT = {"id": "1", "name": "p", "entity": {"id": "1", "name": "me"}}


class WandbServer:
    """Context manager; holds the history and the summary of each run. What is sent to a known run is added to it."""

    def __init__(self) -> None:
        self.history: dict[str, list[str]] = defaultdict(list)
        self.summary: dict[str, str] = {}
        self.known: set[str] = set()
        handler = type("Handler", (_Handler,), {"held": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever)

    def __enter__(self) -> "WandbServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """In which wandb talks to this server, with a key and files of its own."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        return kept | {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self._http.server_port}",
            "WANDB_API_KEY": "a" * 40,
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "NO_PROXY": "127.0.0.1",
        }

    def rows(self, project: str, run_id: str) -> list[dict[str, Any]]:
        """The history of a run."""
        return [json.loads(line) for line in self.history[f"{project}/{run_id}"]]

    def stream(self, run: str, files: dict[str, Any]) -> None:
        """Take what a run streams."""
        if part := files.get("wandb-history.jsonl"):
            self.history[run][part["offset"] :] = part["content"]
        if part := files.get("wandb-summary.json"):
            self.summary[run] = part["content"][-1]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What the operations return that the client looks at."""
        run = f"{variables.get('project')}/{variables.get('name')}"
        bucket: dict[str, Any] = {
            "id": "1", "name": variables.get("name"), "displayName": "", "config": "{}", "project": _PROJECT,
            "summaryMetrics": self.summary.get(run, "{}"), "historyLineCount": len(self.history[run]),
            "eventsLineCount": 0, "logLineCount": 0, "historyTail": json.dumps(self.history[run][-1:]),
            "eventsTail": "[]", "wandbConfig": '{"t": 1}', "tags": [],
        }  # fmt: skip
        if operation == "RunResumeStatus":
            return {"model": {**_PROJECT, "bucket": bucket if run in self.known else None}}
        if operation == "UpsertBucket":
            inserted = run not in self.known
            self.known.add(run)
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}, "serverInfo": {"features": []}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held: WandbServer

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if streamed := re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", self.path):
            self.held.stream(f"{streamed[1]}/{streamed[2]}", json.loads(body).get("files") or {})
            self._reply({})
        elif self.path.endswith("/graphql"):
            asked = json.loads(body)
            named = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            self._reply({"data": self.held.answer(named[1] if named else "", asked.get("variables") or {})})
        else:
            self._reply({})

    def _reply(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
