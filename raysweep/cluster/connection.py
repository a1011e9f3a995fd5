"""Connects to an existing Ray cluster, or starts one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raysweep.cluster.environment import (
    UV,
    check_import_order,
    check_loopback,
    ray_environment,
    ray_folder,
    temporary_folder,
)
from raysweep.cluster.watchdog import Watchdog
from raysweep.errors import UserError, one_line

START_ATTEMPTS = 4
"""Ray gives a cluster half a minute to start, which a machine that does much else may not manage."""

logger = logging.getLogger(__name__)

_Listener = Literal["cluster", "silent", "other"] | None


@dataclass(frozen=True)
class Connection:
    """A cluster that this process is connected to."""

    context: Any
    """What `ray.init` returned."""
    shared: bool
    """Whether somebody else has set it up: it may have other nodes, and they may come and go."""

    @property
    def dashboard(self) -> str:
        """The address of its dashboard, empty where it has none."""
        return f"http://{self.context.dashboard_url}" if self.context.dashboard_url else ""


@contextmanager
def connected(on_loss: Callable[[str], None] | None = None, code: tuple[str, ...] = ()) -> Iterator[Connection]:
    """Connect to the cluster that somebody has set up, or else to one of this machine's that ends with the context.

    The packages in the folders `code` are there for every worker.

    Ray's environment is set while in the context: import Ray's modules inside it, not before. Raises `UserError` where Ray
    was imported too early, where nothing answers at RAY_ADDRESS, or where a cluster of this machine's dies; `on_loss` is
    called with the reason first, from another thread.
    """
    cluster, source, listener = _find()
    if listener == "silent":
        raise UserError(
            f"what listens at {cluster} answers nothing for {SILENCE} s: if it is a Ray cluster, run again when it "
            f"answers; if not, {f'delete {source}' if source else 'unset RAY_ADDRESS'}, or set RAY_ADDRESS=local"
        )
    with ray_environment(local=cluster is None), _own_signals():
        if cluster is not None and _wants_token(cluster):
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        import ray  # After its environment is set.

        if ray.is_initialized():
            yield Connection(ray.init(ignore_reinit_error=True, logging_level=logging.CRITICAL), shared=True)
            return
        if cluster is None:
            check_import_order()
            check_loopback()
        with _own_signals():  # Ray puts a handler of its own in place of whoever's there is.
            context = _initialized(cluster, code)
        for name in ("ray", "ray.data", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if cluster is not None:
            try:
                yield Connection(context, shared=True)
            finally:
                ray.shutdown()
            return
        watchdog = Watchdog(Path(context.address_info["session_dir"]), on_loss)
        try:
            yield Connection(context, shared=False)
        except BaseException:
            watchdog.check()
            raise
        finally:
            watchdog.end(ray.shutdown)
        watchdog.check()


def _initialized(cluster: str | None, code: tuple[str, ...]) -> Any:
    """What `ray.init` returns, of the cluster at an address or of a new one on this machine. Raises `UserError`."""
    import ray
    from joblib import cpu_count
    from ray._private.utils import get_num_cpus  # What `ray.init` asks.

    arguments: dict[str, Any] = {
        "address": cluster or "local",
        "logging_level": logging.CRITICAL,
        "log_to_driver": False,
    }
    if code:
        arguments["runtime_env"] = {"py_modules": list(code)}
    if cluster is None:
        if own := ray_folder():
            arguments["_temp_dir"] = str(own)
        # What this process may use of the machine: Ray sees a container's share, which may be less than one, and joblib also
        # the cores that a process is bound to, as Slurm binds it.
        arguments["num_cpus"] = max(1, min(int(get_num_cpus()), cpu_count()))
    # Ray puts the folder that it is started from first on the path of every worker: from this one they find this raysweep,
    # whatever lies where the sweep was started.
    folder = (
        Path.cwd() if os.environ.get(UV) == "1" else Path(__file__).parents[2]
    )  # uv's working folder is to be packed.
    with chdir(folder):
        for _ in range(START_ATTEMPTS):
            try:
                return ray.init(**arguments)
            except Exception as error:  # Of any kind, by what is wrong.
                ray.shutdown()
                said = one_line(error)
                if "Version mismatch" in said:
                    raise UserError(
                        f"the Ray cluster at {cluster} is of another version ({said}): use the same environment on both "
                        "sides, or RAY_ADDRESS=local for a cluster of this machine's own"
                    ) from None
                if cluster is not None:
                    remedy = "set RAY_ADDRESS=local for a cluster of this machine's own"
                    if _wants_token(cluster):
                        remedy = f"copy its ~/.ray/auth_token to this machine, and unset RAY_AUTH_MODE; or {remedy}"
                    raise UserError(f"the Ray cluster at {cluster} cannot be joined ({said}): {remedy}") from None
                if "timed out" not in said:
                    raise UserError(f"Ray cannot start a cluster on this machine: {said}") from None
    raise UserError(
        f"Ray did not start on this machine, {START_ATTEMPTS} times in a row. The load is {os.getloadavg()[0]:.0f} on "
        f"{arguments['num_cpus']} CPUs: try again when other programs leave it room"
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put this process's signal handlers back; only a main thread has any to put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def address() -> str | None:
    """The address of the Ray cluster that somebody has set up: RAY_ADDRESS, or what `ray start` left; None without one.

    Raises `UserError` where no cluster answers at RAY_ADDRESS.
    """
    return _find()[0]


def _find() -> tuple[str | None, Path | None, _Listener]:
    """The cluster's address, the file that has it where RAY_ADDRESS does not, and what listens there."""
    named = os.environ.get("RAY_ADDRESS", "auto")
    if named == "local":
        return None, None, None
    if named != "auto":
        if named.startswith(("http://", "https://")):
            raise UserError(
                f"RAY_ADDRESS={named} is the address of Ray's dashboard, for jobs: set it to the cluster's own, host:port "
                "with the port of `ray start --head` (6379), or unset it"
            )
        if named.startswith("ray://"):
            raise UserError(
                f"RAY_ADDRESS={named} is the address of Ray's client server, which Tune and Train do not work through: set "
                "it to the cluster's own, host:port with the port of `ray start --head` (6379)"
            )
        listener = _listener(named)
        if listener in (None, "other"):
            raise UserError(f"no Ray cluster answers at RAY_ADDRESS={named}: start it, or unset RAY_ADDRESS")
        return named, None, listener
    for file in _started():
        with suppress(OSError):
            address = file.read_text(encoding="utf-8").strip()
            listener = _listener(address) if address else None
            if listener in ("cluster", "silent"):
                if file.stat().st_uid != os.getuid():
                    # What is pickled here would run as somebody else, and what they answer as this user.
                    said = "the Ray cluster at %s is another user's, and is not joined: set RAY_ADDRESS=%s to join it"
                    logger.warning(said, address, address)
                    continue
                return address, file, listener
    return None, None, None


def _started() -> list[Path]:
    """The files where `ray start` may have left its address. A shell without this one's TMPDIR leaves it in /tmp."""
    folders = [temporary_folder()] + ([] if os.environ.get("RAY_TMPDIR") else [Path("/tmp")])  # noqa: S108
    return [folder / "ray" / "ray_current_cluster" for folder in folders]


# HTTP/2's opening, which each side of gRPC answers with its settings (RFC 9113, 3.4 and 6.5).
_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4

# Seconds.
SILENCE = 5


def _listener(address: str) -> _Listener:
    """What listens at host:port; asked first, since Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        connection = socket.create_connection((host, int(port)), timeout=SILENCE)
    except (OSError, ValueError):
        return None
    with connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
            return "cluster"
        try:
            connection.sendall(_OPENING)
            answer = b""
            while len(answer) < 4 and (part := connection.recv(4 - len(answer))):
                answer += part
            return "cluster" if answer[3:] == bytes([_SETTINGS]) else "other"
        except TimeoutError:
            return "silent"
        except OSError:
            return "other"


def _wants_token(address: str) -> bool:
    """Whether a cluster asks for a token, as `ray start` has it by default and `ray.init` does not."""
    try:
        import grpc
    except ImportError:  # Ray's own programs have it inside.
        return False
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            alive(b"", timeout=SILENCE)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False
