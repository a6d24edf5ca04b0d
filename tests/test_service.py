"""`serve`: the real command under real requests, and what its limits refuse."""

import asyncio
import base64
import http.client
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import uvicorn
from PIL import Image
from uvicorn.server import ServerState

import tracked_cls.serving.gateway
from tests.conftest import PARAMS, ROOT
from tracked_cls import afterword, finding
from tracked_cls.config import ServeConfig, load
from tracked_cls.errors import UserError
from tracked_cls.processes import Process
from tracked_cls.service import make_gateway
from tracked_cls.serving.address import bind
from tracked_cls.serving.classifier import Classifier
from tracked_cls.serving.gateway import Gateway
from tracked_cls.serving.limits import Limits, Refusal
from tracked_cls.serving.listener import Connection

LIMITS = Limits(
    max_body_bytes=10_000, max_images=3, max_pixels=100_000, max_waiting=1, timeout_seconds=5.0, at_once=1
)  # fmt: skip
MOST_BYTES, PATIENCE = 200_000, 2.0  # of the server that runs


def _file(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def digit(trained):
    """A test image as PNG bytes with its true label."""
    manifest = trained.prepared.manifest
    index = next(i for i in manifest.indices("test") if manifest.classes[manifest.labels[i]] == "0")
    return _file(Image.fromarray(trained.prepared.pixels[index][:, :, 0])), "0"


# ---- the command -----------------------------------------------------------------------------------------------------


class Server:
    """The command as a process, from its first line that says it answers."""

    def __init__(self, folder, words):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        self.log = folder / "log"
        self.started = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.serve", *words],
                stdout=log, stderr=log, cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        while "try it: " not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() - self.started < 120, self.log.read_text()
            time.sleep(0.1)
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", self.log.read_text())[1])

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method, path, body=None, **headers):
        connection = self.connect()
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, json.loads(content) if content.strip() else None

    def raw(self, *parts, pause=0.0):
        """Send bytes as they are, in parts; return status and body of what comes back, once the connection ends."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            said = b""
            while more := connection.recv(65536):
                said += more
        head, _, body = said.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def rows(self, cells, **params):
        split = {"columns": ["image"], "data": [[cell] for cell in cells]}
        body = json.dumps({"dataframe_split": split, "params": params})
        status, answer = self.ask("POST", "/invocations", body, Content_Type="application/json")
        assert status == 200, answer
        return answer["predictions"]


@pytest.fixture(scope="module")
def server(trained, store, tmp_path_factory):
    """The champion behind small limits; ended by its last test."""
    limits = {"max_body_bytes": MOST_BYTES, "max_images": 8, "max_pixels": 50_000, "timeout_seconds": PATIENCE, "port": 0}
    words = [word for key, value in limits.items() for word in (f"--{key}", str(value))]
    running = Server(tmp_path_factory.mktemp("serve"), [*PARAMS, *store, *words])
    yield running
    running.process.kill()
    running.process.wait(30)


def test_the_command_that_is_printed_works_as_it_stands(server, trained):
    line = re.search(r"try it: (.*)", server.log.read_text())[1]
    done = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=30)
    [row] = json.loads(done.stdout)["predictions"]
    assert set(row) == {"label", "probability", "probabilities", "unsure", "error"}
    assert len(row["probabilities"]) == 3


def test_a_file_is_labelled_and_traced_to_its_model_and_run(server, digit, trained):
    status, row = server.ask("POST", "/predict?top_k=2&threshold=1", digit[0], Content_Type="image/png")
    assert (status, row["label"], len(row["probabilities"]), row["unsure"]) == (200, digit[1], 2, True)
    status, health = server.ask("GET", "/health")
    assert (status, health["ready"]) == (200, True)
    assert re.fullmatch(r"models:/digits-classifier/\d+", health["model"])
    assert health["address"] == "models:/digits-classifier@champion"
    assert {"weights_digest", "run_id", "data"} <= set(health)


def test_both_ways_give_the_answer_of_the_classifier(server, digit):
    row = server.ask("POST", "/predict", digit[0], Content_Type="application/octet-stream")[1]
    [same] = server.rows([base64.b64encode(digit[0]).decode()])
    assert row == same


def test_the_server_holds_neither_torch_nor_much_memory(server):
    maps = (f"/proc/{server.process.pid}/maps", f"/proc/{server.process.pid}/status")
    libraries, status = (open(path).read() for path in maps)  # noqa: SIM115, PTH123
    assert "libtorch" not in libraries
    assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < 300_000


def _odd_images():
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "16 bits": _file(Image.fromarray(np.full((9, 9), 40_000, np.uint16))),
        "CMYK": _file(colour.convert("CMYK"), "JPEG"),
        "rotated by EXIF": _file(colour, "JPEG", exif=exif),
        "animated": _file(colour, "GIF", save_all=True, append_images=[colour.rotate(90)] * 3),
        "palette": _file(colour.convert("P")),
        "transparent": _file(colour.convert("RGBA")),
    }


@pytest.mark.parametrize("kind", _odd_images())
def test_an_odd_image_has_a_label(server, kind):
    status, row = server.ask("POST", "/predict", _odd_images()[kind], Content_Type="image/*")
    assert (status, row["error"]) == (200, None)


def test_bad_images_have_their_errors_and_the_others_their_labels(server, digit):
    good = base64.b64encode(digit[0]).decode()
    huge = bytearray(digit[0])
    huge[16:24] = (50_000).to_bytes(4, "big") * 2  # the header's width and height; its checksum no longer fits
    cut, large = (base64.b64encode(data).decode() for data in (digit[0][:40], _file(Image.new("L", (300, 300)))))
    rows = server.rows([good, "no base64!", None, 7, cut, base64.b64encode(huge).decode(), large, good])
    codes = [row["error"] and row["error"].partition(":")[0] for row in rows]
    assert codes == [None, "E_BASE64", "E_EMPTY", "E_ARRAY", "E_TRUNCATED", "E_CORRUPT", "E_TOO_LARGE", None]
    assert rows[0] == rows[-1]
    assert rows[0]["label"] == digit[1]
    assert rows[1]["label"] is None


SPLIT = '{"dataframe_split": {"columns": ["%s"], "data": [%s]}%s}'
SECRET = "c2VjcmV0"
BAD_REQUESTS = {
    "address": ("GET", "/nowhere", None, None, 404, "there is no such address"),
    "documents": ("GET", "/docs", None, None, 404, "there is no such address"),
    "method": ("GET", "/predict", None, None, 405, "this address takes POST"),
    "deletes": ("DELETE", "/health", None, None, 405, "this address takes GET"),
    "form": ("POST", "/predict", b"x", "application/x-www-form-urlencoded", 415, "the body must be an image file"),
    "no type": ("POST", "/invocations", b"{}", None, 415, "must be application/json"),
    "CSV": ("POST", "/invocations", b"image\nx\n", "text/csv", 415, "must be application/json"),
    "Latin-1": ("POST", "/invocations", b"{}", "application/json; charset=latin-1", 415, "in UTF-8"),
    "no image": ("POST", "/predict", SECRET.encode(), "image/png", 422, "E_NOT_IMAGE: "),
    "nothing": ("POST", "/predict", b"", "image/png", 422, "E_EMPTY: "),
    "top_k": ("POST", "/predict?top_k=many", b"x", "image/png", 400, "top_k must be a number"),
    "negative": ("POST", "/predict?top_k=-1", b"x", "image/png", 400, "top_k must be a whole number >= 0"),
    "underscore": ("POST", "/predict?top_k=1_0", b"x", "image/png", 400, "top_k must be a number"),
    "arabic digits": ("POST", "/predict?top_k=%D9%A3", b"x", "image/png", 400, "top_k must be a number"),
    "not a number": ("POST", "/predict?threshold=nan", b"x", "image/png", 400, "threshold must be a number"),
    "letters": ("POST", "/invocations", b"{}", "application/json; charset=latin-1", 415, "in UTF-8"),
    "threshold": ("POST", "/predict?threshold=2", b"x", "image/png", 400, "threshold must be a number from 0"),
    "query": ("POST", "/predict?best=1", b"x", "image/png", 400, "the address takes threshold and top_k"),
    "twice": ("POST", "/predict?top_k=1&top_k=2", b"x", "image/png", 400, "each once"),
    "garbled": ("POST", "/predict?&&=", b"x", "image/png", 400, "cannot be read"),
    "no JSON": ("POST", "/invocations", b"{" + SECRET.encode(), "application/json", 400, "not valid JSON"),
    "list": ("POST", "/invocations", b"[]", "application/json", 400, "the JSON is no object"),
    "UTF-8": ("POST", "/invocations", b'{"\xff": 1}', "application/json", 400, "not UTF-8: byte 2"),
    "UTF-16": ("POST", "/invocations", "{}".encode("utf-16"), "application/json", 400, "not UTF-8"),
    "nested": ("POST", "/invocations", b"[" * 100_000, "application/json", 413, "more than 1,064 values"),
    "deep": ("POST", "/invocations", b'{"a":' * 1000, "application/json", 400, "JSON"),
    "digits": ("POST", "/invocations", b"9" * 10_000, "application/json", 400, "a number is too long"),
    "formats": ("POST", "/invocations", b'{"inputs": []}', "application/json", 400, "must have one of dataframe_split and"),
    "rows": ("POST", "/invocations", b'{"dataframe_split": 3}', "application/json", 400, "does not hold a list of rows"),
    "many": ("POST", "/invocations", (SPLIT % ("image", ",".join(['["x"]'] * 9), "")).encode(), "application/json", 413,
             "9 images are more than the 8"),
    "column": ("POST", "/invocations", (SPLIT % ("pic", f'["{SECRET}"]', "")).encode(), "application/json", 400,
               "one column 'image' is expected, got 'pic'"),
    "ragged": ("POST", "/invocations", (SPLIT % ("image", f'["x"], ["{SECRET}", 1]', "")).encode(), "application/json", 400,
               "row 2 holds 2 values, and there is one column"),
    "chat": ("POST", "/invocations", (SPLIT % ("image", '["x"]', f', "messages": ["{SECRET}"]')).encode(), "application/json",
             400, "unknown key 'messages' in the JSON object"),
    "instances": ("POST", "/invocations", (SPLIT % ("image", '["x"]', ', "instances": []')).encode(), "application/json",
                  400, "unknown key 'instances' in the JSON object"),
    "both": ("POST", "/invocations", (SPLIT % ("image", "", ', "dataframe_records": []')).encode(), "application/json", 400,
             "must have one of dataframe_split and"),
    "two columns": ("POST", "/invocations", (SPLIT % ('image", "pic', f'["x", "{SECRET}"]', "")).encode(), "application/json",
                    400, "one column 'image' is expected, got 'image', 'pic'"),
    "no columns": ("POST", "/invocations", b'{"dataframe_split": {"data": [["x"]]}}', "application/json", 400,
                   "one column 'image' is expected, got no column"),
    "split": ("POST", "/invocations", b'{"dataframe_split": {"columns": ["image"], "data": [], "rows": 1}}', "application/json",
              400, "unknown key 'rows' in dataframe_split"),
    "record": ("POST", "/invocations", b'{"dataframe_records": [{"image": "x"}, {"pic": "x"}]}', "application/json", 400,
               "unknown key 'pic' in row 2 of dataframe_records"),
    "no record": ("POST", "/invocations", b'{"dataframe_records": [["x"]]}', "application/json", 400,
                  "row 1 of dataframe_records is no object"),
    "parameter": ("POST", "/invocations", (SPLIT % ("image", '["x"]', ', "params": {"k": 1}')).encode(), "application/json",
                  400, "unknown parameter 'k'"),
    "parameters": ("POST", "/invocations", (SPLIT % ("image", '["x"]', ', "params": 3')).encode(), "application/json", 400,
                   "params is no object"),
    "large": ("POST", "/predict", b"x" * (MOST_BYTES + 1), "image/png", 413, "larger than 200,000 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_a_bad_request_is_refused_in_one_line_without_its_data(server, digit, kind):
    method, path, body, content_type, status, message = BAD_REQUESTS[kind]
    headers = {"Content_Type": content_type} if content_type else {}
    found, answer = server.ask(method, path, body, **headers)
    assert (found, list(answer)) == (status, ["error"])
    assert message in answer["error"]
    assert "\n" not in answer["error"]
    assert SECRET not in answer["error"]
    assert "Traceback" not in server.log.read_text()


def test_a_row_without_an_image_takes_no_other_row_with_it(server, digit):
    good = base64.b64encode(digit[0]).decode()
    cells = ["\ud800", "," * 4000, {"a": 1}, ["x"]]
    rows = [[good], *[[cell] for cell in cells], [], None, good]  # the last without its brackets
    body = json.dumps({"dataframe_split": {"columns": ["image"], "index": [7], "data": rows}})
    status, answer = server.ask("POST", "/invocations", body, Content_Type='application/json; charset="UTF-8";')
    codes = [row["error"] and row["error"].partition(":")[0] for row in answer["predictions"]]
    assert status == 200
    assert codes == [None, "E_BASE64", "E_BASE64", "E_ARRAY", "E_ARRAY", "E_EMPTY", "E_EMPTY", None]


@pytest.mark.parametrize(
    ("table", "codes"),
    [
        ({"dataframe_split": {"columns": ["image"], "data": []}}, []),
        ({"dataframe_records": []}, []),
        ({"dataframe_records": [{"image": "?"}, {}, None]}, ["E_BASE64", "E_EMPTY", "E_EMPTY"]),
    ],
    ids=["no rows", "no records", "records"],
)
def test_a_table_has_as_many_answers_as_rows(server, table, codes):
    status, answer = server.ask("POST", "/invocations", json.dumps(table), Content_Type="application/json;")
    assert (status, [row["error"].partition(":")[0] for row in answer["predictions"]]) == (200, codes)


@pytest.mark.parametrize("path", ["/health", "/ping", "/version"])
def test_the_head_of_what_can_be_read_can_be_asked_for(server, path):
    assert server.ask("HEAD", path)[0] == 200


POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
CHUNK = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("parts", "pause", "status", "message"),
    [
        ([POST + b"Expect: 100-continue\r\nContent-Length: 100000000\r\n\r\n"], 0, 413, "larger than 200,000 bytes"),
        ([CHUNKED + b"\r\n", *[CHUNK] * 20, b"0\r\n\r\n"], 0, 413, "larger than 200,000 bytes"),
        ([b"no HTTP at all\r\n\r\n"], 0, 400, "no valid HTTP request"),
        ([POST + b"Long: " + b"x" * 20_000 + b"\r\n\r\n"], 0, 400, "longer than 16 kB"),
        ([CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\nGET /health"], 0, 400, "Content-Length or Transfer-Encoding, not both"),
        ([CHUNKED + b"\r\n", b"1\r\nx\r\n" * 300], 0, 400, "in more than 256 chunks of less than 64 bytes"),
        ([POST[:3], *[b"P"] * 5], 0.3, 408, "did not begin within 2 s"),
        ([POST + b"Content-Length: 9\r\n\r\n", *[b"x"] * 5], 0.3, 408, "did not arrive within 2 s"),
    ],
    ids=["announced", "in chunks", "no HTTP", "long head", "two lengths", "crumbs", "slow head", "slow body"],
)
def test_what_is_too_large_or_too_slow_is_refused_while_it_comes(server, parts, pause, status, message):
    started = time.monotonic()
    found, answer = server.raw(*parts, pause=pause)
    assert found == status
    assert message in answer["error"]
    assert time.monotonic() - started < 10


def test_a_hundred_megabytes_are_read_away_so_that_the_sender_hears_why(server):
    status, answer = server.ask("POST", "/predict", b"x" * 100_000_000, Content_Type="image/png")
    assert (status, answer["error"][:24]) == (413, "the request is larger th")
    assert server.ask("GET", "/health")[0] == 200


def test_clients_at_once_are_all_answered(server, digit):
    def one(_):
        return server.ask("POST", "/predict", digit[0], Content_Type="image/png")

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(one, range(120)))
    assert {(status, row["label"]) for status, row in answers} == {(200, digit[1])}


def test_silent_connections_are_bounded_and_do_not_last(server):
    silent = []
    try:
        while len(silent) < 800:  # more than wait, are answered and may be spare
            silent.append(socket.create_connection(("127.0.0.1", server.port), timeout=30))
        said = silent[-1].recv(65536)
    finally:
        for connection in silent:
            connection.close()
    assert said.startswith(b"HTTP/1.1 503")
    assert b"too many connections" in said
    assert server.ask("GET", "/health")[0] == 200


def test_a_server_that_is_told_to_end_finishes_what_is_under_way(server, digit):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(digit[0]) + digit[0][:50])
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        connection.sendall(digit[0][50:])
        said = b""
        while more := connection.recv(65536):
            said += more
    assert said.startswith(b"HTTP/1.1 200")
    assert server.process.wait(15) == 0
    assert server.log.read_text().endswith("serve: ended\n")


# ---- what cannot be served -------------------------------------------------------------------------------------------


def test_a_taken_port_and_a_strange_host_are_refused_by_name():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"serve.port: 127.0.0.1:{port} cannot be listened on: Address already in use"):
            bind("127.0.0.1", port)
    for host in ("no host", "192.0.2.1"):  # of the second, a test address, the system knows what it means
        with pytest.raises(UserError, match=f"serve.host: '{host}' is no address of this machine"):
            bind(host, 0)


def test_the_command_says_so_at_once_in_one_line(tmp_path):
    with bind("127.0.0.1", 0) as taken:
        command = [sys.executable, "-m", "pipelines.serve", *PARAMS, "--port", str(taken.getsockname()[1])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: serve.port: 127.0.0.1:\d+ cannot be listened on: .*; give another serve.port .*\n", done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_served_without_a_tracking_store(trained, store, tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    logged = finding.find(load(ServeConfig, [*PARAMS, *store])).folder
    sums = []
    for name in ("model.onnx", "meta.json"):
        (folder / name).write_bytes((logged / name).read_bytes())
        sums.append(f"{sha256((folder / name).read_bytes()).hexdigest()}  {name}\n")
    (folder / "SHA256SUMS").write_text("".join(sums))
    cfg = load(ServeConfig, [*PARAMS, "--model", str(folder), "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"])
    found = finding.find(cfg)
    assert (found.folder, found.exact) == (folder, "exported")
    assert not (tmp_path / "mlflow.db").exists()
    (folder / "meta.json").write_text("{}")
    with pytest.raises(UserError, match="has changed"):
        finding.find(cfg)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/nobody@champion", "there is no registered model 'nobody'"),
        ("models:/digits-classifier/99", "has no '99'"),
        ("nowhere", "serve.model: 'nowhere' does not exist"),
    ],
)
def test_a_model_that_is_not_there_is_refused_by_name(trained, store, tmp_path, model, message):
    with pytest.raises(UserError, match=message):
        finding.find(load(ServeConfig, [*PARAMS, *store, "--model", model]))


def test_a_mistake_that_the_finding_process_meets_is_said_here(tmp_path):
    cfg = load(ServeConfig, [*PARAMS, "--model", "nowhere", "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"])
    with finding.begin(cfg) as find, pytest.raises(UserError, match="serve.model: 'nowhere' does not exist"):
        find()


@pytest.mark.parametrize("model", [[], ["--model", "models:/digits-classifier@champion"]], ids=["champion", "named"])
def test_a_store_of_no_known_kind_is_one_line(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    cfg = load(ServeConfig, [*PARAMS, "--tracking.uri", "garbage://x", *model])
    with finding.begin(cfg) as find, pytest.raises(UserError, match="^tracking.uri: garbage://x: .*unsupported URI[^\n]*$"):
        find()


def test_the_run_that_mlflow_run_opened_goes_on_while_its_model_is_served(trained, store, client, monkeypatch):
    run_id = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    found = finding.find(load(ServeConfig, [*PARAMS, *store]))
    served = client.get_run(run_id)
    assert (served.info.status, served.data.tags["model"], served.data.tags["kind"]) == ("RUNNING", found.exact, "serve")
    assert Process.parse(served.data.tags["process"]).pid == os.getppid()  # it is started for that, and ends
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store[1])
    client.set_terminated(run_id, "FAILED")  # as the launcher says of Ctrl-C
    afterword.speak(run_id, [], "FINISHED")
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_finding_process_that_is_not_waited_for_ends_with_the_block(tmp_path):
    cfg = load(ServeConfig, [*PARAMS, "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"])  # which takes seconds to be made
    with pytest.raises(KeyError), finding.begin(cfg):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


# ---- a connection alone ----------------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """A client that reads nothing."""

    def __init__(self):
        super().__init__()
        self.is_cut = False

    def get_extra_info(self, name, default=None):
        return default

    def is_closing(self):
        return self.is_cut

    def get_write_buffer_size(self):
        return 1

    def write(self, data):
        pass

    def close(self):
        pass

    def abort(self):
        self.is_cut = True


@pytest.mark.parametrize(
    ("happens", "is_cut"),
    [(["pause_writing"], True), (["pause_writing", "resume_writing"], False), (["timeout_keep_alive_handler"], True)],
    ids=["reads nothing", "reads on", "keeps its answer"],
)
def test_a_client_that_does_not_read_its_answer_is_cut_off(happens, is_cut):
    async def story():
        config, wire = uvicorn.Config(_gateway(Stub()), ws="none", log_config=None, interface="asgi3"), Wire()
        connection = Connection(config=config, server_state=ServerState(), app_state={}, patience_seconds=0.05, most=9)
        connection.connection_made(wire)
        connection.data_received(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n")
        for name in happens:
            getattr(connection, name)()
        await asyncio.sleep(0.15)
        return wire.is_cut

    assert asyncio.run(story()) is is_cut


# ---- the gateway alone -----------------------------------------------------------------------------------------------


class Stub:
    """A scorer that takes its time, or fails."""

    def __init__(self, seconds=0.0, error=None):
        self.seconds, self.error = seconds, error

    def row(self, image, params):
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        return {"label": "x", "error": None}


def _gateway(scorer, **changes):
    return Gateway(scorer, None, replace(LIMITS, **changes), {"ready": True})


async def _ask(gateway, body=b"x", parts=None, path="/predict", content_type=b"image/png"):
    """Send one request to a gateway; return status, headers and content of its answer."""
    sent, said = parts if hasattr(parts, "__anext__") else iter(parts or [{"type": "http.request", "body": body}]), []

    async def receive():
        return await anext(sent) if hasattr(sent, "__anext__") else next(sent)

    async def send(message):
        said.append(message)

    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
    await gateway({**scope, "server": ("here", 1), "scheme": "http", "root_path": ""}, receive, send)
    return said[0]["status"], dict(said[0]["headers"]), json.loads(said[1]["body"])


def test_work_that_takes_too_long_is_answered_and_keeps_its_place_until_it_ends():
    async def story():
        gateway = _gateway(Stub(0.4), timeout_seconds=0.1)
        first = await _ask(gateway)
        is_busy, second = gateway.is_busy, await _ask(gateway)
        await asyncio.sleep(0.4)
        gateway._scorer.seconds = 0
        return first, is_busy, second, await _ask(gateway)

    first, is_busy, second, third = asyncio.run(story())
    assert (first[0], first[2]["error"][:16]) == (504, "no answer within")
    assert is_busy
    assert (second[0], second[2]["error"][:17]) == (503, "no place was free")
    assert third[0] == 200


def test_more_requests_than_may_wait_are_told_to_come_again():
    async def story():
        gateway = _gateway(Stub(0.2))
        return await asyncio.gather(*[_ask(gateway) for _ in range(4)])

    answers = asyncio.run(story())
    assert [answer[0] for answer in answers] == [200, 200, 503, 503]
    assert answers[2][1][b"retry-after"] == b"1"


def test_a_failure_of_ours_is_in_the_log_and_not_in_the_answer(capsys):
    status, _, answer = asyncio.run(_ask(_gateway(Stub(error=KeyError("inner matter")))))
    log = capsys.readouterr().err
    assert status == 500
    assert "inner matter" not in answer["error"]
    mark = re.search(r"error (\w{8})", answer["error"])[1]
    assert f"error {mark}: Traceback" in log
    assert "inner matter" in log


def test_bodies_that_are_held_together_are_bounded():
    async def story():
        gateway = _gateway(Stub(0.1), max_waiting=99, at_once=1, max_body_bytes=100_000)
        bodies = [b"x" * 100_000] * 10 + [b"x" * 60_000]
        return await asyncio.gather(*[_ask(gateway, body) for body in bodies]), gateway

    answers, gateway = asyncio.run(story())
    assert [answer[0] for answer in answers] == [200] * 8 + [503] * 2 + [200]  # the small one is not kept out
    assert gateway._memory._held == 0


def test_large_bodies_that_come_together_do_not_keep_each_other_from_ending():
    async def story():
        gateway = _gateway(Stub(), max_waiting=99, max_body_bytes=400_000)
        parts = [{"type": "http.request", "body": b"x" * 50_000, "more_body": left > 0} for left in range(7, -1, -1)]
        return await asyncio.gather(*[_ask(gateway, b"x" * 400_000, _slowly(parts)) for _ in range(12)])

    assert [answer[0] for answer in asyncio.run(story())] == [200] * 8 + [503] * 4  # those that came first


async def _slowly(messages):
    for message in messages:
        await asyncio.sleep(0.02)
        yield message


def test_a_large_json_is_taken_apart_while_no_other_is(monkeypatch):
    at_work, most = [], []

    def parse(body, limits):
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.05)
        at_work.pop()
        raise Refusal(400, "seen")

    async def story():
        app = _gateway(Stub(), max_waiting=99, at_once=4, max_body_bytes=100_000)
        asked = [_ask(app, b" " * 90_000, path="/invocations", content_type=b"application/json") for _ in range(4)]
        return await asyncio.gather(*asked)

    monkeypatch.setattr(tracked_cls.serving.gateway, "parse", parse)
    assert [answer[2] for answer in asyncio.run(story())] == [{"error": "seen"}] * 4
    assert max(most) == 1


def test_a_request_that_is_given_up_at_the_end_is_told_so():
    async def story():
        pending = asyncio.create_task(_ask(_gateway(Stub(0.2)), parts=_slowly([{"type": "http.disconnect"}] * 2)))
        await asyncio.sleep(0.02)
        pending.cancel()
        return await pending

    status, _, answer = asyncio.run(story())
    assert (status, answer["error"]) == (503, "the server is ending; ask the next one")


def test_a_client_that_goes_away_is_not_answered():
    parts = [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]
    with pytest.raises(IndexError):  # nothing was said
        asyncio.run(_ask(_gateway(Stub()), parts=parts))


def test_a_late_table_is_given_up_between_two_images(trained, store, digit, monkeypatch):
    folder = finding.find(load(ServeConfig, [*PARAMS, *store])).folder
    classifier, read, num_read = Classifier.load(folder / "model.onnx", folder / "meta.json", threads=1), Classifier.read, []

    def reads(self, image, max_pixels):
        num_read.append(time.sleep(0.1))
        return read(self, image, max_pixels)

    monkeypatch.setattr(Classifier, "read", reads)
    gateway = make_gateway(classifier, replace(LIMITS, max_images=50, max_body_bytes=100_000, timeout_seconds=0.3), 0.0, {})
    split = {"columns": ["image"], "data": [[base64.b64encode(digit[0]).decode()]] * 20}
    body = json.dumps({"dataframe_split": split}).encode()
    status, _, answer = asyncio.run(_ask(gateway, body, path="/invocations", content_type=b"application/json"))
    assert (status, answer["error"][:16]) == (504, "no answer within")
    assert 1 <= len(num_read) < 8
