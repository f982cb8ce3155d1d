"""Servers on loopback that tell a tiny model's true log-probabilities, in three dialects."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class TeacherServer:
    """Serves one model; ``mangle`` may spoil a reply, ``faults`` are statuses to give first."""

    def __init__(self, model, tokenizer, dialect, *, most=20):
        self.model, self.tokenizer, self.dialect, self.most = model, tokenizer, dialect, most
        self.mangle = lambda reply: reply
        self.faults, self.bodies, self.headers = [], [], []
        self.cut = 0  # connections to break off in the middle of a body

    def logprobs(self, ids):
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0]
        return logits.double().log_softmax(-1)

    def answer(self, body):
        ids = body["prompt"]
        if not isinstance(ids, list) or not all(isinstance(one, int) for one in ids):
            return 400, {"error": {"message": "this test server takes token ids"}}
        return getattr(self, self.dialect)(body, ids)

    def prompt_logprobs(self, body, ids):
        k = body.get("prompt_logprobs")
        if k is not None and k > self.most:
            said = f"Requested prompt logprobs of {k}, which is greater than max allowed"
            return 400, {"error": {"message": said}}
        logprobs, rows = self.logprobs(ids), [None]
        for place in range(1, len(ids)):
            row = logprobs[place - 1]
            own = float(row[ids[place]])
            best = row.topk(k)
            told = {
                str(token): {"logprob": value, "rank": at + 1, "decoded_token": "?"}
                for at, (token, value) in enumerate(
                    zip(best.indices.tolist(), best.values.tolist(), strict=True)
                )
            }
            rank = int((row >= own).sum())
            told.setdefault(str(ids[place]), {"logprob": own, "rank": rank})
            rows.append(told)
        choice = {"index": 0, "text": "x", "prompt_logprobs": rows, "prompt_token_ids": ids}
        return 200, self.reply(choice, ids)

    def echo(self, body, ids):
        if "prompt_logprobs" in body or not body.get("echo"):
            return 200, self.reply({"index": 0, "text": "x", "logprobs": None}, ids)
        k = min(body["logprobs"], self.most)
        marked = body.get("return_tokens_as_token_ids") and self.marks
        name = (
            (lambda one: f"token_id:{one}") if marked else lambda one: self.tokenizer.decode([one])
        )
        logprobs = self.logprobs(ids)
        own, top = [None], [None]
        for place in range(1, len(ids)):
            row = logprobs[place - 1]
            own.append(float(row[ids[place]]))
            best = row.topk(k)
            top.append(
                {
                    name(t): v
                    for t, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                }
            )
        tokens = [name(one) for one in ids] + [name(ids[0])]  # the generated one at the end
        told = {"tokens": tokens, "token_logprobs": [*own, -1.0], "top_logprobs": [*top, {}]}
        return 200, self.reply({"index": 0, "text": "x", "logprobs": told}, ids)

    marks = True

    def steps(self, body, ids):
        if body.get("echo"):
            return 500, {"error": {"message": "Only no echo is supported"}}
        k = body.get("n_probs")
        if not k:
            return 200, self.reply({"index": 0, "text": "x"}, ids)
        row = self.logprobs(ids)[-1]
        best = row.topk(min(k, len(row)))
        told = [
            {"id": token, "token": "?", "bytes": [], "logprob": value}
            for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        content = [{"id": told[0]["id"], "token": "?", "top_logprobs": told}]
        return 200, self.reply({"index": 0, "text": "x", "logprobs": {"content": content}}, ids)

    def silent(self, body, ids):
        return 200, self.reply({"index": 0, "text": "x", "logprobs": None}, ids)

    def reply(self, choice, ids):
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}


@contextmanager
def serving(server, name="tiny"):
    """Serve on loopback; yield the address that ends in /v1."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.send(200, {"data": [{"id": name}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            if server.faults:
                self.send(server.faults.pop(0), {"error": {"message": "not now"}})
                return
            status, reply = server.answer(body)
            self.send(status, server.mangle(reply) if status == 200 else reply)

        def send(self, status, reply):
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if status == 200 and server.cut:
                server.cut -= 1
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            self.wfile.write(data)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(
        target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
