"""Commands in processes that start at once: a server that has imported everything forks one for each.

A process that has read images or multiplied matrices may hang in a fork, so the server only makes scenes.

    server = Server()
    scene = server.make("report", folder)
    child = server.start("report", signal=(9, 3))      # SIGKILL at the third time it touches a file
    status, lines = server.wait(child)
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Scenes of commands that need neither torch nor nnU-Net; for the others these are imported once.
LIGHT = (
    "slurm", "evaluate", "evaluate_folds", "data_check", "data_clean", "data_convert", "data_convert_dicom",
    "data_dicom_seg",
)  # fmt: skip
_HEAVY = ("matplotlib.pyplot", "torch._dynamo", "nnunetv2.inference.predict_from_raw_data", "nnunet_ext.plans.write")
_EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.symlink")


class Server:
    """The process that forks; one request at a time."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet", "NNUNET_EXT"))}
        here = Path(__file__).parent.parent
        environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent), environment.get("PYTHONPATH", "")])
        environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from helpers.forks import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, bufsize=1,
        )  # fmt: skip
        self.cpu_seconds = 0.0

    def make(self, name: str, base: Path) -> dict[str, Any]:
        """Make a scene of `helpers.scenes` in a new folder."""
        return self._ask(do="make", name=name, base=str(base))

    def start(self, base: Path, **options: Any) -> int:
        """Run the command of the scene in `base`; returns the process.

        Args:
            base: of the scene.
            **options: signal=(number, n): it gets the signal at the n-th time it touches a file in `base`;
                file_size=n: no file may have more bytes; words=[...]: added to the command line.
        """
        return self._ask(do="start", base=str(base), **options)["process"]

    def wait(self, process: int) -> tuple[int, list[str], int]:
        """(exit status or minus the signal that ended it, lines of stderr, how often it touched a file)."""
        answer = self._ask(do="wait", process=process)
        self.cpu_seconds += answer["cpu_seconds"]
        return answer["status"], answer["lines"], answer["touched"]

    def run(self, base: Path, **options: Any) -> tuple[int, list[str], int]:
        """`start` and `wait`."""
        return self.wait(self.start(base, **options))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, **request: Any) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(request) + "\n")
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def serve() -> None:
    """Answer the requests on stdin until it ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever making a scene has to say
    from helpers import scenes

    made: dict[str, scenes.Scene] = {}
    started: dict[int, int] = {}  # process -> what it says on stderr
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "make":
                if request["name"] not in LIGHT:
                    for module in _HEAVY:
                        importlib.import_module(module)
                builder = getattr(scenes, request["name"])
                scene = made[request["base"]] = scenes.make(builder, Path(request["base"]))
                answer = {"output": scene.output and str(scene.output), "more": [str(p) for p in scene.more]}
            elif request["do"] == "start":
                said, says = os.pipe()
                process = os.fork()
                if process == 0:
                    _child(made[request["base"]], says, request)
                os.close(says)
                started[process] = said
                answer = {"process": process}
            else:
                answer = _ended(request["process"], started.pop(request["process"]))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


def _ended(process: int, said: int) -> dict[str, Any]:
    with open(said, encoding="utf-8", errors="replace") as file:
        text = file.read()
    _, status, usage = os.wait4(process, 0)
    lines = text.removesuffix("\n").split("\n") if text else []
    touched = [int(line.split()[1]) for line in lines if line.startswith("@touched ")]
    return {
        "status": os.waitstatus_to_exitcode(status),
        "lines": [line for line in lines if not line.startswith("@touched ")],
        "touched": touched[-1] if touched else 0,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def _child(scene: Any, says: int, request: dict[str, Any]) -> None:
    """Run the command and end the process."""
    from nnunet_ext.cli.main import main

    os.dup2(says, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    touched, base, at, file_size = 0, str(scene.base), request.get("signal"), request.get("file_size")

    def hook(event: str, arguments: tuple) -> None:
        nonlocal touched
        if event == "open":
            if not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
                return
        elif event not in _EVENTS:
            return
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(base):
            touched += 1
            if at is not None and touched == at[1]:
                os.kill(os.getpid(), at[0])

    status = 70
    try:
        os.chdir(scene.base / "here")
        os.environ.update(scene.variables)
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        with scene.prepared():
            sys.addaudithook(hook)
            status = main([*scene.words, *request.get("words", ())])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os.write(2, f"@touched {touched}\n".encode())
        os._exit(status)
