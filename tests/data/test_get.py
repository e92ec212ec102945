"""Downloads from a local server that breaks off, changes its file, or ignores ranges; archives that mean harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import random
import socket
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nibabel
import numpy as np
import pytest
from helpers import mutate
from helpers.blobs import SHAPE, make

from nnunet_ext.data import fetch
from nnunet_ext.data.check import check_dataset
from nnunet_ext.data.fetch import archive_files, download
from nnunet_ext.data.msd import TASKS, DecathlonTask, convert_archive, find_task, get_task
from nnunet_ext.errors import UserError


class Server(ThreadingHTTPServer):
    """Serves `content` under every path; breaks the connection after `breaks[i]` bytes of the i-th answer."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.breaks, self.asked, self.ranges, self.status = content, [], [], True, 200
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked, etag = self.headers.get("Range"), f'"{hashlib.md5(server.content).hexdigest()}"'
        server.asked.append(asked)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if asked and server.ranges and self.headers.get("If-Range") == etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        stop = start + server.breaks.pop(0) if server.breaks else None
        self.wfile.write(server.content[start:stop])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(content):
        server = Server(content)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def md5(data):
    return hashlib.md5(data).hexdigest()


CONTENT = np.random.default_rng(0).bytes(300_000)


def test_interruptions_are_continued(serve, tmp_path):
    server = serve(CONTENT)
    server.breaks = [100_000, 0, 50_000]
    path = download(server.url + "/x", tmp_path / "x", md5(CONTENT), pause_s=0)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    download(server.url + "/x", path, md5(CONTENT))
    assert len(server.asked) == 4  # what is there and right is not fetched again


def test_continued_by_the_next_command(serve, tmp_path):
    server = serve(CONTENT)
    server.breaks = [120_000, *[0] * 20]
    with pytest.raises(UserError, match="run the same command again"):
        download(server.url + "/x", tmp_path / "x", md5(CONTENT), pause_s=0)
    assert (tmp_path / "x.part").stat().st_size == 120_000 and not (tmp_path / "x").exists()
    server.breaks, server.asked = [], []
    assert download(server.url + "/x", tmp_path / "x", md5(CONTENT)).read_bytes() == CONTENT
    assert server.asked == ["bytes=120000-"]


@pytest.mark.parametrize("fault", ["changed", "no ranges"])
def test_begins_anew(serve, tmp_path, fault):
    server = serve(CONTENT)
    server.breaks = [120_000, *[0] * 20]
    with pytest.raises(UserError):
        download(server.url + "/x", tmp_path / "x", md5(CONTENT), pause_s=0)
    server.breaks, server.ranges = [], fault == "changed"
    server.content = CONTENT[::-1] if fault == "changed" else CONTENT
    assert download(server.url + "/x", tmp_path / "x", md5(server.content)).read_bytes() == server.content


def test_wrong_checksum_and_refusals(serve, tmp_path):
    server = serve(CONTENT)
    with pytest.raises(UserError, match=f"MD5 {md5(CONTENT)}, expected 0000"):
        download(server.url + "/x", tmp_path / "x", "0000")
    assert not list(tmp_path.iterdir())
    server.status = 404
    with pytest.raises(UserError, match="answers 404"):
        download(server.url + "/x", tmp_path / "x", "0000")
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot download"):
        download(server.url + "/x", tmp_path / "x", "0000", pause_s=0)


def decathlon(folder, channels):
    """An archive as the Decathlon's, from the blobs."""
    raw = make(folder / "blobs")
    names = sorted(path.name for path in (raw / "labelsTr").iterdir())
    files = {}
    for name in names:
        image = nibabel.load(raw / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz"))
        array = np.asarray(image.dataobj)
        if channels > 1:
            array = np.stack([array, array[::-1]], axis=-1)
        files[f"imagesTr/{name}"] = nibabel.Nifti1Image(array, image.affine, image.header)
        files[f"labelsTr/{name}"] = nibabel.load(raw / "labelsTr" / name)
    files["imagesTs/t.nii.gz"] = nibabel.Nifti1Image(array[:, ::-1].copy(), image.affine, image.header)
    description = {
        "name": "Things",
        "licence": "CC-BY-SA 4.0",
        "modality": {str(c): f"MR{c}" for c in range(channels)},
        "labels": {"0": "background", "1": "left organ", "2": "right organ"},
        "training": [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names],
        "test": ["./imagesTs/t.nii.gz"],
    }
    members = {f"Task99_Things/{name}": image.to_bytes() for name, image in files.items()}
    members = {name: gzip.compress(data, 1) for name, data in members.items()}
    members["Task99_Things/dataset.json"] = json.dumps(description).encode()
    members["Task99_Things/imagesTr/._junk.nii.gz"] = b"macOS"
    return archive(members)


def archive(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname, data = tarfile.SYMTYPE, data, b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 2])
def test_task_becomes_raw_data(serve, tmp_path, channels):
    data = decathlon(tmp_path, channels)
    server = serve(data)
    server.breaks = [len(data) // 2]
    task = DecathlonTask(99, "Things", "", md5(data))
    folder = get_task(task, tmp_path / "raw", server.url)
    assert folder.name == "Dataset099_Things" and server.asked[1] == f"bytes={len(data) // 2}-"
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [folder.name]  # no archive left
    assert len(list((folder / "imagesTr").iterdir())) == 6 * channels
    assert check_dataset(folder).findings == ()
    last = nibabel.load(folder / f"imagesTr/a_01_{channels - 1:04d}.nii.gz")
    source = nibabel.load(tmp_path / "blobs/imagesTr/a_01_0000.nii.gz")
    expected = np.asarray(source.dataobj)
    assert last.shape == SHAPE and np.allclose(last.affine, source.affine)
    assert np.array_equal(np.asarray(last.dataobj), expected[::-1] if channels == 2 else expected)
    with pytest.raises(UserError, match="exists already"):
        get_task(task, tmp_path / "raw", server.url)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil"])
def test_paths_that_lead_out(tmp_path, name):
    path = tmp_path / "x.tar"
    path.write_bytes(archive({name: b"x"}))
    with pytest.raises(UserError, match="leads out of its folder"):
        convert_archive(path, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar"]


def test_other_bad_archives(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(archive({"T/link": "/etc/passwd"}))
    with pytest.raises(UserError, match="a link or device"):
        list(archive_files(path))
    path.write_bytes(b"no archive at all")
    with pytest.raises(UserError, match="no intact tar archive"):
        list(archive_files(path))
    path.write_bytes(archive({"T/readme": b"x"}))
    with pytest.raises(UserError, match=r"no dataset\.json"):
        convert_archive(path, tmp_path / "new")
    incomplete = {
        "modality": {"0": "MR"},
        "labels": {"0": "background"},
        "training": [{"image": "./imagesTr/lost.nii.gz"}],
    }
    path.write_bytes(archive({"T/dataset.json": json.dumps(incomplete).encode()}))
    with pytest.raises(UserError, match="disagree about case lost"):
        convert_archive(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damaged_archives_are_one_line(tmp_path):
    """Cut anywhere, or with bits turned anywhere: the new data set appears whole or not at all."""
    whole = decathlon(tmp_path, 2)
    rng = np.random.default_rng(0)
    damaged = [whole[: len(whole) * part // 12] for part in range(12)]
    packed = gzip.compress(whole, 1)
    damaged += [packed[: len(packed) // 2], packed[:-1000] + rng.bytes(1000), lzma.compress(whole)[:-5000]]
    damaged += [mutate.data(whole, random.Random(number)) for number in range(30)]
    path, refused = tmp_path / "x.tar", 0
    for number, data in enumerate(damaged):
        path.write_bytes(data)
        target = tmp_path / f"new{number}"
        try:
            convert_archive(path, target)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and not target.exists()
    assert refused > 30


@pytest.mark.parametrize(
    "entries",
    [
        [],
        {"modality": {"0": 7}},
        {"modality": {}},
        {"labels": {"one": "organ"}},
        {"labels": {"0": ["a"]}},
        {"labels": ["background"]},
        {"training": 7},
        {"training": ["a.nii.gz"]},
        {"training": [{"label": "x"}]},
        {"training": [{"image": 3}]},
    ],
)
def test_odd_descriptions_are_one_line(tmp_path, entries):
    path = tmp_path / "x.tar"
    facts = {"modality": {"0": "MR"}, "labels": {"0": "background"}, "training": []}
    text = json.dumps({**facts, **entries} if isinstance(entries, dict) else entries)
    path.write_bytes(archive({"T/dataset.json": text.encode()}))
    with pytest.raises(UserError, match="it is no archive of the Decathlon"):
        convert_archive(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "state", ["", "[]", "7", '"x"', "null", '{"url": 3}', '{"url": "URL", "etag": 7, "size": "a"}']
)
def test_any_state_of_an_unfinished_download_is_survived(serve, tmp_path, state):
    server = serve(CONTENT)
    (tmp_path / "x.part").write_bytes(CONTENT[:1000])
    (tmp_path / "x.part.json").write_text(state.replace("URL", server.url + "/x"))
    assert download(server.url + "/x", tmp_path / "x", md5(CONTENT), pause_s=0).read_bytes() == CONTENT


def test_a_refused_connection_says_so_and_soon_ends(tmp_path, capsys, monkeypatch):
    pauses = []
    monkeypatch.setattr(fetch.time, "sleep", pauses.append)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
        with pytest.raises(UserError, match=r"cannot download .*Connection refused"):
            download(url, tmp_path / "x", "0000")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and sum(pauses) <= 10
    assert lines[0] == f"{url}: [Errno 111] Connection refused; trying again in 2 s (2 of 3)"


def test_names():
    assert {find_task(text).number for text in ("4", "hippocampus", "Task04_Hippocampus")} == {4}
    assert [task.number for task in TASKS] == list(range(1, 11)) and all(len(task.md5) == 32 for task in TASKS)
    with pytest.raises(UserError, match="11 is no task"):
        find_task("11")


def test_command(serve, tmp_path):
    def command(*arguments):
        line = [sys.executable, "-m", "nnunet_ext", "data", "get", *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)

    assert "Task09_Spleen" in command("msd", "--list").stdout
    server = serve(CONTENT)  # not what Task04 is
    done = command("msd", "4", "-o", str(tmp_path / "raw"), "--base", server.url)
    assert done.returncode == 1 and "expected 9d24dba7" in done.stderr and done.stderr.count("\n") == 1
    assert command("msd").returncode == 2 and command("msd", "4", "--base", "ftp://x").returncode == 2
