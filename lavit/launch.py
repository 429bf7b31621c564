"""Start a training module through DeepSpeed's launcher: ``python -m lavit.launch MODULE [--processes N] -- CONFIG …``.

The launcher runs in a session of its own. Ctrl-C and SIGTERM are passed on once, its ranks get the time to save, and
nothing of it is left running afterwards.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lavit.runs import ProcessGroup, StopSignal, end_all, end_with_parent, usable_cores

SAVE_PATIENCE = 45.0  # seconds that stages have to save and end; DeepSpeed's launcher allows its ranks 30
FOLLOW = 2.0  # seconds in which helpers of a command that has ended follow it
# glibc hands large blocks back to the kernel at every free and has them zeroed again at the next allocation; keeping
# them made the encoder four times as fast on two cores.
KEEP_MEMORY = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296"
_GIVEN_PORTS: set[int] = set()


def visible_gpus() -> int:
    """The number of GPUs that CUDA programs started from here would see, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip() not in ("", "-1")])
    devices = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
    if devices or shutil.which("nvidia-smi") is None:
        return len(devices)
    try:  # without device files (WSL) the driver's tool knows
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(re.findall(r"^GPU \d+:", listed, re.MULTILINE))


def rank_and_world() -> tuple[int, int]:
    """Which of how many processes of a launcher this one is."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def launch_environment(processes: int = 1, shares: int = 1) -> dict[str, str]:
    """What a stage finds in its environment, where the user has not set it: threads, and the CPU without a GPU.

    Args:
        processes: ranks of the stage on this machine.
        shares: stages that may run at the same time; each gets this part of the cores.
    """
    threads = max(1, usable_cores() // (processes * shares))
    wanted = {"OMP_NUM_THREADS": str(threads), "GLIBC_TUNABLES": KEEP_MEMORY}
    if visible_gpus() == 0:
        wanted["DS_ACCELERATOR"] = "cpu"
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def launch_command(
    module: str, args: Sequence[str], processes: int | None = 1, hostfile: str | None = None, port: int | None = None
) -> list[str]:
    """The command that starts ``module`` on ``processes`` ranks, a machine, through DeepSpeed's launcher.

    Args:
        module: a module with a main, ``tokenizer.train`` for instance.
        args: its own arguments.
        processes: ranks on each machine; None takes the slots of the hostfile.
        hostfile: lines of ``host slots=N`` for several machines; None stays on this one.
        port: where rank 0 listens; None chooses a free port on one machine, DeepSpeed's own on several.

    Raises:
        ValueError: DeepSpeed is not installed, the hostfile is missing, or there are fewer GPUs than processes.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(f"deepspeed is not installed for {sys.executable}; run `make setup` and use its Python")
    if processes is not None and processes < 1:
        raise ValueError(f"processes={processes}: at least one rank is needed")
    command = [sys.executable, "-m", "deepspeed.launcher.runner"]
    if hostfile:
        if not Path(hostfile).is_file():
            raise ValueError(f"no hostfile {hostfile}; it holds lines of `host slots=N`")
        command += ["--hostfile", hostfile]
        command += ["--num_accelerators", str(processes)] if processes else []
        command += ["--master_port", str(port)] if port else []
    else:  # the null device keeps a /job/hostfile that happens to exist out of it
        command += ["--hostfile", os.devnull, *_local_ranks(processes or 1), "--master_port", str(port or free_port())]
    return [*command, "--no_local_rank", "--module", module, *args]


def _local_ranks(processes: int) -> list[str]:
    gpus = visible_gpus()
    if gpus and processes > gpus:
        raise ValueError(f"{processes} processes and {gpus} visible GPUs: a rank needs a GPU of its own")
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")
    if gpus and all(name.isdigit() for name in chosen):  # --num_accelerators would take the first GPUs instead
        return ["--include", "localhost:" + ",".join(chosen[:processes])]
    return ["--num_accelerators", str(processes)]


def free_port() -> int:
    """A TCP port that is free now and that this function has not given before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in _GIVEN_PORTS:
            _GIVEN_PORTS.add(port)
            return port


def supervise(command: list[str], environment: dict[str, str]) -> int:
    """Run one command to its end and give its exit status; 130 or 143 after a signal to this process."""
    end_with_parent(grace=SAVE_PATIENCE + 15)
    group: ProcessGroup | None = None

    def at_once(signum: int) -> None:
        if group is not None:
            end_all([group], signal.SIGKILL, 5)
        os._exit(128 + signum)

    with StopSignal(at_once) as stop:
        group = ProcessGroup(command, environment)
        while (code := group.poll()) is None and not stop.requested:
            time.sleep(0.1)
        # A launcher that ends while its ranks run was killed, and DeepSpeed's runner reports that as success.
        abandoned = not stop.requested and group.outlives(FOLLOW)
        if not end_all([group], stop.signal or signal.SIGTERM, SAVE_PATIENCE):
            print("what had not ended was killed; its last checkpoint is whole", file=sys.stderr)
        if stop.requested:
            print("stopped; the same command goes on where it was", file=sys.stderr)
            return stop.exit_code
    if abandoned:
        print("error: the launcher was killed while its ranks ran; run again to go on", file=sys.stderr)
    return (code if code > 0 else 128 - code) if code else int(abandoned)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    usage = "python -m lavit.launch MODULE [options] -- CONFIG [key=value ...]"
    parser = argparse.ArgumentParser(usage=usage)
    parser.add_argument("module", help="tokenizer.train, pretrain.train, …")
    parser.add_argument("--processes", default="", help="ranks a machine; default: the hostfile's slots, or one a GPU")
    parser.add_argument("--hostfile", default="", help="lines of `host slots=N`, for several machines")
    options = parser.parse_args(argv[:cut])
    try:
        if options.processes and not options.processes.isdigit():
            raise ValueError(f"--processes {options.processes} is not a whole number")
        processes = int(options.processes) if options.processes else None
        if processes is None and not options.hostfile:
            processes = max(1, visible_gpus())
        command = launch_command(options.module, argv[cut + 1 :], processes, options.hostfile or None)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(shlex.join(command), flush=True)
    return supervise(command, launch_environment(processes or max(1, visible_gpus())))


if __name__ == "__main__":
    sys.exit(main())
