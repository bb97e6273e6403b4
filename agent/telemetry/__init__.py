"""What is sent to whoever watches: a trace of every turn, and the metrics. Off unless `[telemetry]` says otherwise.

OpenTelemetry's SDK is an extra: it is imported when something is to be sent, and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from agent.config import ConfigError, TelemetryConfig

if TYPE_CHECKING:
    from agent.telemetry.otlp import Telemetry


def start(config: TelemetryConfig, registry: CollectorRegistry, now_s: Callable[[], float]) -> Telemetry | None:
    """None where nothing is to be sent. Raises `ConfigError` where the extra is not installed."""
    if not (config.traces or config.metrics):
        return None
    try:
        from agent.telemetry.otlp import Telemetry
    except ImportError as error:
        raise ConfigError(
            f"telemetry.traces and telemetry.metrics need {error.name}: pip install 'agogic[telemetry]'"
        ) from error
    return Telemetry(config, registry, now_s)
