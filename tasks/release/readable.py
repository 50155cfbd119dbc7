"""Numbers and names as a person reads them: three significant digits, a real minus sign, a unit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeGuard

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
THIN = "\N{NARROW NO-BREAK SPACE}"

LARGEST = 1e18


def is_number(value: Any) -> TypeGuard[float]:
    """An int or float that is finite and can be drawn; evidence comes from many hands, so nothing else is trusted."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def number(value: Any, decimals: int = 3) -> str:
    """`0.873`, `12.4`, `1,250`: `decimals` digits below ten, fewer above, a dash for what is not a number."""
    if not is_number(value):
        return DASH
    size = abs(value)
    if size >= 1000:
        text = f"{size:,.0f}"
    else:
        places = max(0, decimals - (2 if size >= 100 else 1 if size >= 10 else 0))
        text = f"{size:.{places}f}"
    return (MINUS if value < 0 and float(text.replace(",", "")) else "") + text


def signed(value: Any, decimals: int = 3) -> str:
    """A difference with its sign: `+0.012`, `-0.004`, `0.000`."""
    text = number(value, decimals)
    return f"+{text}" if is_number(value) and value > 0 and text.strip("0.,") else text


def percent(value: Any) -> str:
    """A share, 0..1, as `27 %`."""
    return f"{number(100 * value, 1 if abs(value) < 0.1 else 0)}{THIN}%" if is_number(value) else DASH


def seconds(value: Any) -> str:
    """`0.4 s`, `38 s`, `3 min 24 s`, `2 h 05 min`."""
    if not is_number(value):
        return DASH
    if value < 9.95:
        return f"{max(value, 0):.1f}{THIN}s"
    whole = round(value)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60:02d}{THIN}s"
    minutes = whole // 60
    return f"{minutes // 60}{THIN}h {minutes % 60:02d}{THIN}min"


def compact(value: Any) -> str:
    """A count with its scale: `940`, `15.7 k`, `1.05 M`, `7.2 B`."""
    if not is_number(value):
        return DASH
    for scale, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale * 0.9995:
            return f"{number(value / scale, 2)}{THIN}{suffix}"
    return f"{value:.3g}"


def bytes_size(value: float) -> str:
    """A file size in decimal units: `512 B`, `84 kB`, `4.2 MB`."""
    for scale, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{number(value / scale, 1)}{THIN}{suffix}"
    return f"{value:.0f}{THIN}B"


def rate(value: float) -> str:
    """A learning rate: `4e-3` reads faster than `0.004000`."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def times(ratio: Any) -> str:
    """A factor: `3.9x`."""
    return f"{number(ratio, 1)}\N{MULTIPLICATION SIGN}" if is_number(ratio) else DASH


def moment(value: Any) -> str:
    """An ISO time as `24 Nov 2026, 03:22 UTC`; text that is no time is returned as it is."""
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value or "")
    at = at.astimezone(UTC) if at.tzinfo else at
    return f"{at.day} {at:%b %Y, %H:%M} UTC" if at.tzinfo else f"{at.day} {at:%b %Y, %H:%M}"


def metric_title(name: str) -> str:
    """`f1_macro` as a heading: `F1 macro`."""
    known = {
        "f1": "F1",
        "roc": "ROC",
        "auc": "AUC",
        "ovr": "one-vs-rest",
        "mcc": "MCC",
        "ece": "ECE",
        "mrr": "MRR",
        "mse": "MSE",
        "mae": "MAE",
        "mb": "MB",
        "ms": "ms",
        "bleu": "BLEU",
        "chrf": "chrF",
        "rouge1": "ROUGE-1",
        "rouge2": "ROUGE-2",
        "rougeL": "ROUGE-L",
    }
    words = [known.get(word, word) for word in name.split("_")]
    text = " ".join(words).replace("ROC AUC", "ROC-AUC").replace("cross entropy", "cross-entropy")
    return text if text.startswith("chrF") else text[:1].upper() + text[1:]


def shorten(text: str, limit: int) -> str:
    """`text` in at most `limit` characters, the end replaced by an ellipsis."""
    return text if len(text) <= limit else text[: max(limit - 1, 1)].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
