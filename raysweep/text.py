"""Numbers, times and amounts as people read them."""

from __future__ import annotations


def abbreviate(number: float, digits: int = 3, letters: str = "kMBT", plain: str = ".0f", least: float = 1e3) -> str:
    """A number in a few significant digits with a letter for its thousands, as `1.05M`.

    `letters` stand for a thousand, a million and so on. A number below `least` has none, and the format `plain`.

    >>> abbreviate(1_048_576), abbreviate(999), abbreviate(999_936), abbreviate(32e9, 4, "KMB")
    ('1.05M', '999', '1M', '32B')
    """
    for power in range(len(letters), 0, -1):
        unit = 1000.0**power
        if abs(number) >= max(unit, least):
            text = f"{number / unit:.{digits}g}"
            if "e" in text and power < len(letters):  # Rounded, it is a thousand of these.
                return f"{number / unit / 1000:.{digits}g}{letters[power]}"
            return text + letters[power - 1]
    return format(number, plain)


def duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> duration(7500)
    '2h05m'
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def resources(cpus: float, gpus: float) -> str:
    """CPUs and GPUs in words.

    >>> resources(8, 0.5)
    '8 CPU and 0.5 GPU'
    """
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
