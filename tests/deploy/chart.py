"""Renders the Helm chart by gotpl (Go's templates with Helm's functions, in Python) and holds what comes against the
schemas of a Kubernetes version. A program of its own: what it needs is in deploy/requirements.txt and not in ours.

    python tests/deploy/chart.py CHART KUBERNETES [VALUES as JSON]

Prints the documents as one JSON list. Ends with what is wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from gotpl.exts.helm import HelmTemplateEngine


def merged(below: Any, above: Any) -> Any:
    """As Helm lays values over a chart's own."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {name: merged(below.get(name), value) for name, value in above.items()}


def main() -> None:
    chart, kubernetes = Path(sys.argv[1]), sys.argv[2]
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    values = merged(yaml.safe_load((chart / "values.yaml").read_text()), json.loads((sys.argv[3:] or ["{}"])[0]))
    context = {
        "Values": values,
        "Chart": {name[0].upper() + name[1:]: value for name, value in about.items()},
        "Release": {"Name": "talk", "Namespace": "voice", "Service": "Helm", "IsInstall": True, "Revision": 1},
        "Capabilities": {"KubeVersion": {"Version": f"v{kubernetes}.0"}},
    }
    sources = {path.name: path.read_text() for path in sorted((chart / "templates").iterdir())}
    engine = HelmTemplateEngine.from_sources(sources)
    rendered = engine.render({name: context for name in sources if name.endswith(".yaml")})
    documents = [found for text in rendered.values() for found in yaml.safe_load_all(text) if found is not None]
    for document in documents:
        kubernetes_validate.validate(document, kubernetes, strict=True)
    json.dump(documents, sys.stdout)


if __name__ == "__main__":
    main()
