"""Runs commands of palinka in processes of their own, which begin with everything imported.

Started by `test_resume.py` as a program: each line on standard input is a request, a JSON object
with the folder to run commands `in`, and for each process its arguments in `lines` and its
variables in `environments`. Answers are the processes' numbers as soon as they are there, and then
their exit statuses, negative for the signal that ended one.
"""

import json
import os
import sys
import traceback
from typing import NoReturn

import palinka.cli.fit
from palinka.__main__ import main


def command(folder: str, line: list[str], environment: dict[str, str]) -> int:
    os.environ.update(environment)
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["palinka", *line]
    return main(sys.argv[1:])


def child(folder: str, line: list[str], environment: dict[str, str]) -> NoReturn:
    status = 1
    try:
        status = command(folder, line, environment)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for arguments, environment in zip(request["lines"], request["environments"], strict=True):
            pids.append(os.fork())
            if pids[-1] == 0:
                child(request["in"], arguments, environment)
        print(json.dumps(pids), flush=True)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    assert palinka.cli.fit
    serve()
