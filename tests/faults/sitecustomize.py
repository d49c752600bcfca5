"""Faults for tests: Python loads this file at its start wherever its directory is on PYTHONPATH.

BM3_FAULT="module:function:call:rank:action:directory" makes that rank, at that call of that function (from 1),
    kill       end by SIGKILL          stop      stop, as by SIGSTOP
    raise      raise an exception      memory    raise MemoryError
    hold       wait there until a file `release` is made, for a test to strike elsewhere at that moment
and leave a file `reached` in the directory, with its pid.
"""

import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path


class Fault(importlib.abc.MetaPathFinder):
    def __init__(self, text):
        self.module, self.function, call, self.rank, self.action, directory = text.split(":")
        self.call, self.directory, self.calls = int(call), Path(directory), 0

    def find_spec(self, name, path, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_wrap(module):
            execute(module)
            self.wrap(module)

        spec.loader.exec_module = execute_and_wrap
        return spec

    def wrap(self, module):
        *owners, name = self.function.split(".")
        owner = module
        for part in owners:
            owner = getattr(owner, part)
        original = getattr(owner, name)

        def wrapped(*arguments, **named):
            self.calls += 1
            if self.calls == self.call and not (self.directory / "reached").exists():
                self.strike()
            return original(*arguments, **named)

        setattr(owner, name, wrapped)

    def strike(self):
        part = self.directory / f"reached.{os.getpid()}"
        part.write_text(str(os.getpid()))
        part.rename(self.directory / "reached")
        if self.action == "raise":
            raise ArithmeticError("a fault of the test")
        if self.action == "memory":
            raise MemoryError("a fault of the test")
        if self.action in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self.action == "kill" else signal.SIGSTOP)
        while self.action == "hold" and not (self.directory / "release").exists():
            time.sleep(0.05)


if "BM3_FAULT" in os.environ and os.environ.get("RANK") == os.environ["BM3_FAULT"].split(":")[3]:
    sys.meta_path.insert(0, Fault(os.environ["BM3_FAULT"]))
