"""Runs a command and says what it cost: measured.py LIMIT_SECONDS COMMAND...

Prints one JSON object: seconds (wall), cpu_seconds and peak_rss_bytes of that process alone, and why it failed (the
last words that it said) where it did or was stopped at the limit.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time


def main():
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        signal.signal(signal.SIGALRM, lambda *_: child.kill())
        signal.alarm(int(sys.argv[1]))
        _, status, usage = os.wait4(child.pid, 0)
        signal.alarm(0)
        seconds = time.monotonic() - start
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(status)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error:")] or lines
    why = told[-1][-300:] if code and told else f"ended with {code}" if code else None
    if seconds >= int(sys.argv[1]):
        why = f"stopped after {sys.argv[1]} s"
    cpu = usage.ru_utime + usage.ru_stime
    cost = {"seconds": seconds, "cpu_seconds": cpu, "peak_rss_bytes": usage.ru_maxrss * 1024, "why": why}
    print(json.dumps(cost))


if __name__ == "__main__":
    main()
