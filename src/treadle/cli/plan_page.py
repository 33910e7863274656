"""The compiled plan as one HTML page that needs nothing else: the template beside this file, with the plan as JSON."""

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.inference.loaded import Description


def page(description: "Description") -> str:
    """The whole document."""
    info = description.info
    data = {
        "plan": description.plan_dict,
        "placement": description.placement,
        "info": {"model": info.model, "backend": info.backend, "isa": info.isa, "numerics": info.numerics},
    }
    template = (files("treadle.cli") / "plan_page.html").read_text(encoding="utf-8")
    return template.replace("DATA", embedded(data), 1)


def embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever a model's names are."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def write_page(description: "Description", path: Path) -> None:
    """Raises OSError where the file cannot be written."""
    path.write_text(page(description), encoding="utf-8")
