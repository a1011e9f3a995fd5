"""The blocks of an OLMo on a CPU, in a third of the time: `kernels.c`, compiled once per machine, and matmuls by PyTorch.

At the widths of small models PyTorch spends most of a block outside its matmuls: in attention with heads of 4 or 8
numbers, and in passes over memory for norms, rotary embedding and SwiGLU. `hidden` computes the same function with those
fused, and its gradient by hand. Where there is no C compiler, on a GPU and under autocast `supports` says no, and OLMo's own
forward pass is used; the numbers differ by rounding.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

from raysweep.cache import cache as cache_directory
from raysweep.files import put_in_place

log = logging.getLogger("raysweep")

HEADS = (2, 4, 6, 8, 12, 16, 24, 32)
"""Sizes of a head that have code of their own; those from `NARROWEST_WIDE` to `WIDEST` share theirs."""
NARROWEST_WIDE, WIDEST = 34, 256

# No option may reorder sums: the exponential's rounding depends on their order, and so do equal results on equal machines.
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
_ENDED_BY_SIGNAL = ("terminated program", "unable to execute command")  # In gcc's words and in clang's.
_LANES = 16
_EPSILON = 1e-5


def supports(olmo: Any, inputs: torch.Tensor) -> bool:
    """Whether `hidden` can compute this model on these token ids."""
    config = olmo.config
    return (
        inputs.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not config.attention_layer_norm
        and olmo.transformer.wte.weight.dtype == torch.float32
        and has_code(config.d_model // config.n_heads)
        and available()
    )


def has_code(head: int) -> bool:
    """Whether there is any for heads of so many numbers."""
    return head in HEADS or (NARROWEST_WIDE <= head <= WIDEST and head % 2 == 0)


def available() -> bool:
    """Whether there are any on this machine."""
    return _library() is not None


def hidden(olmo: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Final states after the last norm, (batch, length, d), of token ids (batch, length): `olmo(inputs).logits`."""
    state = inputs
    for state in states(olmo, inputs):  # noqa: B007
        pass
    return state


def states(olmo: Any, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
    """The states, each (batch, length, d), after the embedding, after each block, and after the last norm."""
    transformer = olmo.transformer
    heads = olmo.config.n_heads
    tables = _rotation(inputs.shape[1], olmo.config.d_model // heads, float(olmo.config.rope_theta))
    x = transformer.wte(inputs)
    yield x
    for block in transformer.blocks:
        x = _Block.apply(
            x, block.attn_norm.weight, block.att_proj.weight, block.attn_out.weight, block.ff_norm.weight,
            block.ff_proj.weight, block.ff_out.weight, heads, getattr(block, "parallel", False), *tables,
        )  # fmt: skip
        yield x
    yield _RMSNorm.apply(x, transformer.ln_f.weight)


class _Block(torch.autograd.Function):
    """x + attention(norm(x)), then + SwiGLU(norm(that)), or, in parallel, + SwiGLU(norm(x)); x is (batch, length, d)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, norm1: torch.Tensor, qkv_weight: torch.Tensor, out_weight: torch.Tensor,
        norm2: torch.Tensor, up_weight: torch.Tensor, down_weight: torch.Tensor, heads: int, parallel: bool,
        cosine: torch.Tensor, sine: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        batch, length, width = x.shape
        x = x.reshape(-1, width)
        normed, inverse1 = _rms_norm(x, norm1)
        qkv = normed @ qkv_weight.T
        attended, lse = _attention(qkv, batch, length, heads, cosine, sine)
        middle = torch.addmm(x, attended, out_weight.T)
        normed2, inverse2 = _rms_norm(x if parallel else middle, norm2)
        wide = normed2 @ up_weight.T
        result = torch.addmm(middle, _swiglu(wide), down_weight.T)
        ctx.save_for_backward(
            x, norm1, qkv_weight, out_weight, norm2, up_weight, down_weight, cosine, sine, normed, inverse1, qkv, attended,
            lse, x if parallel else middle, normed2, inverse2, wide,
        )  # fmt: skip
        ctx.shape = (batch, length, heads)
        ctx.parallel = parallel
        return result.view(batch, length, width)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x, norm1, qkv_weight, out_weight, norm2, up_weight, down_weight, cosine, sine, normed, inverse1, qkv, attended,
         lse, normed_by_2, normed2, inverse2, wide) = ctx.saved_tensors  # fmt: skip
        batch, length, heads = ctx.shape
        grad = grad.reshape(x.shape).contiguous()
        dwide, gated = _swiglu_backward(wide, grad @ down_weight)
        ddown = grad.T @ gated
        dup = dwide.T @ normed2
        through = grad.clone()
        dnorm2 = _rms_norm_backward(normed_by_2, norm2, inverse2, dwide @ up_weight, through)
        dattended = grad if ctx.parallel else through
        dout = dattended.T @ attended
        dqkv = _attention_backward(qkv, attended, lse, dattended @ out_weight, batch, length, heads, cosine, sine)
        dqkv_weight = dqkv.T @ normed
        # From here on the gradient of x grows in place.
        dnorm1 = _rms_norm_backward(x, norm1, inverse1, dqkv @ qkv_weight, through)
        dx = through.view(batch, length, -1)
        return dx, dnorm1, dqkv_weight, dout, dnorm2, dup, ddown, None, None, None, None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out, inverse = _rms_norm(flat, weight)
        ctx.save_for_backward(flat, weight, inverse)
        return out.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat, weight, inverse = ctx.saved_tensors
        dx = torch.zeros_like(flat)
        dweight = _rms_norm_backward(flat, weight, inverse, grad.reshape(flat.shape), dx)
        return dx.view(grad.shape), dweight


# The kernels on tensors. Rows are tokens.


def exponential_sums(x: torch.Tensor) -> torch.Tensor:
    """exp of a float32 matrix (V, n) on a CPU, in place, and the sums of its columns (n,).

    Numbers are held between -87 and 88 first, so that nothing overflows but the sums. Where there is no compiler, by
    PyTorch, and without that.
    """
    if x.dtype != torch.float32 or not x.is_contiguous() or not available():
        return x.exp_().sum(dim=0)
    rows, columns = x.shape
    sums = x.new_empty(columns)
    _run(columns, "exponential_sums", _p(x), _p(sums), rows, columns)
    return sums


def _rms_norm(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.contiguous()
    out, inverse = torch.empty_like(x), x.new_empty(len(x))
    rows, width = x.shape
    _run(rows, "rms_norm_forward", _p(x), _p(weight), _p(out), _p(inverse), width, ctypes.c_float(_EPSILON))
    return out, inverse


def _rms_norm_backward(
    x: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor, grad: torch.Tensor, dx: torch.Tensor
) -> torch.Tensor:
    """Adds the gradient of x to `dx`; returns that of the weight."""
    rows, width = x.shape
    grad = grad.contiguous()
    parts = x.new_zeros(_threads(), width)
    _each(
        rows,
        lambda n, begin, end: _library().rms_norm_backward(  # type: ignore[union-attr]
            _p(x), _p(weight), _p(inverse), _p(grad), _p(dx), _p(parts[n]), width, begin, end
        ),
    )
    return parts.sum(dim=0)


def _swiglu(wide: torch.Tensor) -> torch.Tensor:
    rows, columns = wide.shape
    out = wide.new_empty(rows, columns // 2)
    _run(rows, "swiglu_forward", _p(wide), _p(out), columns // 2)
    return out


def _swiglu_backward(wide: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of `wide`, which it overwrites, and the forward's output again."""
    rows, columns = wide.shape
    grad = grad.contiguous()
    out = torch.empty_like(grad)
    _run(rows, "swiglu_backward", _p(wide), _p(grad), _p(out), columns // 2)
    return wide, out


def _attention(
    qkv: torch.Tensor, batch: int, length: int, heads: int, cosine: torch.Tensor, sine: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    width = qkv.shape[1] // 3
    padded = -(-length // _LANES) * _LANES
    out, lse = qkv.new_empty(len(qkv), width), qkv.new_empty(batch * heads, padded)
    _run(
        batch * heads,
        "attention_forward",
        _p(qkv),
        _p(cosine),
        _p(sine),
        _p(out),
        _p(lse),
        length,
        heads,
        width // heads,
    )
    return out, lse


def _attention_backward(
    qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor, batch: int, length: int, heads: int,
    cosine: torch.Tensor, sine: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    grad = grad.contiguous()
    dqkv = torch.empty_like(qkv)
    _run(
        batch * heads, "attention_backward", _p(qkv), _p(cosine), _p(sine), _p(out), _p(lse), _p(grad),
        _p(dqkv), length, heads, qkv.shape[1] // 3 // heads,
    )  # fmt: skip
    return dqkv


@cache
def _rotation(length: int, head: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every position's angles, (length, head / 2)."""
    frequencies = 1.0 / theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


# Calls into the library.


def _p(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _threads() -> int:
    return torch.get_num_threads()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="raysweep-kernels")


def _each(count: int, work: Callable[[int, int, int], int | None]) -> None:
    """`work(n, begin, end)` for an even split of range(count) over torch's number of threads; ctypes lets go of the GIL."""
    threads = min(_threads(), count)
    if threads == 1:
        failed = bool(work(0, 0, count))
    else:
        bounds = [count * n // threads for n in range(threads + 1)]
        failed = any(list(_pool(threads).map(work, range(threads), bounds[:-1], bounds[1:])))
    if failed:
        raise MemoryError("no memory for attention")


def _run(count: int, name: str, *arguments: Any) -> None:
    function = getattr(_library(), name)
    _each(count, lambda n, begin, end: function(*arguments, begin, end))


@cache
def _library() -> ctypes.CDLL | None:
    """`kernels.c`, compiled for this machine and kept in the cache; None where that is not possible.

    Raises `RuntimeError` where a signal ended the compiler: there is one, and without it the numbers would differ.
    """
    source = Path(__file__).with_name("kernels.c")
    compiler = next(
        (path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := shutil.which(name))), None
    )
    if compiler is None:
        log.warning(
            "no C compiler (cc, gcc or clang): small models train with PyTorch's own kernels, about half as fast"
        )
        return None
    key = hashlib.sha256(f"{source.read_text()} {_FLAGS} {compiler} {_processor()}".encode()).hexdigest()[:16]
    library = cache_directory() / "kernels" / f"{key}.so"
    try:
        if not library.exists():
            _compile(compiler, source, library)
        try:
            loaded = ctypes.CDLL(str(library))
        except OSError:  # Damaged on disk.
            _compile(compiler, source, library)
            loaded = ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("kernels.c could not be compiled (%s): small models train with PyTorch's own kernels", error)
        return None
    for name in ("exponential_sums", "rms_norm_forward", "rms_norm_backward", "swiglu_forward", "swiglu_backward"):
        getattr(loaded, name).restype = None
    return loaded


def _compile(compiler: str, source: Path, library: Path) -> None:
    """Put the library in place at once: several trials may start together."""
    with put_in_place(library) as unfinished:
        command = [compiler, *_FLAGS, "-shared", "-fPIC", str(source), "-o", str(unfinished), "-lm"]
        for _ in range(2):
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # noqa: S603
            # A compiler is several programs. Where a signal ends one of the others, the first one ends with 1 and says so.
            if done.returncode >= 0 and not any(words in done.stderr for words in _ENDED_BY_SIGNAL):
                done.check_returncode()
                return
        raise RuntimeError(
            f"a signal ended {compiler} twice while it compiled kernels.c (exit status {done.returncode}): this machine is "
            f"being shut down, or has no memory left. {done.stderr.strip()}"
        )


def _processor() -> str:
    """What decides the instructions that the compiler may use: a cache may be shared by different machines."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))]
        if cpuinfo.exists()
        else []
    )
    return f"{platform.machine()} {platform.processor()} {flags[0] if flags else ''}"
