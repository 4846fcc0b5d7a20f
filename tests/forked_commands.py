"""Runs commands of palinka in processes of their own, which begin with everything imported.

Started by `test_resume.py` as a program: each line on standard input is a request, a JSON object
with the `arguments` of a command and the folder to run it `in`. Answers are the process's number
as soon as it is there, and then its exit status, negative for the signal that ended it.
"""

import json
import os
import sys
import traceback

import palinka.cli
from palinka.__main__ import main


def child(request: dict[str, object]) -> int:
    os.chdir(str(request["in"]))
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["palinka", *request["arguments"]]
    return main(sys.argv[1:])


def serve() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = child(json.loads(line))
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except Exception:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    assert palinka.cli
    serve()
