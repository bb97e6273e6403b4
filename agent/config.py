"""The service's configuration: TOML in, frozen structs out, one-line errors for whatever does not fit."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

Hz = Annotated[float, Meta(ge=4.0, le=12.5)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[float, Meta(gt=0)]


class ConfigError(Exception):
    """The configuration cannot be used; the message names the key, the value and what is allowed."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections: a key that is not a field is an error."""


class RateRange(Section, frozen=True):
    """Any rate from `min` to `max`, as load and network allow."""

    min: Hz = 4.0
    max: Hz = 12.5

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError(f"`min` must not be above `max`, {self.max:g}, but is {self.min:g}")


Rate = Literal["auto"] | Hz | RateRange
EchoCancellation = Literal["auto", "on", "off"]


class HttpConfig(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 8790
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    keys_file: str = ""
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_connections: Annotated[int, Meta(ge=8)] = 1024
    max_connections_per_address: Annotated[int, Meta(ge=1)] = 320
    request_timeout_s: Positive = 10.0
    ping_interval_s: Positive = 20.0
    max_message_bytes: Annotated[int, Meta(ge=65_536)] = 22 * 1024 * 1024
    drain_s: Annotated[float, Meta(ge=0)] = 5.0
    certificate: str = ""
    private_key: str = ""


class ModelConfig(Section, frozen=True):
    spec: str = "embedded"
    voice: str = ""
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    slots: Annotated[int, Meta(ge=0, le=256)] = 0
    threads: Annotated[int, Meta(ge=0)] = 0
    latency: Literal["usual", "low"] = "usual"
    keep_awake: Literal["auto", "on", "off"] = "auto"
    start_timeout_s: Positive = 120.0
    stuck_after_s: Positive = 10.0
    drain_s: Annotated[float, Meta(ge=0)] = 60.0


class NamedModel(ModelConfig, frozen=True, kw_only=True):
    """One of several models that are served side by side. `share`: of the sessions that name none; 0: only who names it
    gets it."""

    name: Annotated[str, Meta(min_length=1)]
    share: Annotated[float, Meta(ge=0)] = 1.0


class SessionConfig(Section, frozen=True):
    instructions: str = ""
    voice: str = "default"
    max_output_tokens: Annotated[int, Meta(ge=1, le=4096)] = 600
    input_frame_rate: Rate = "auto"
    output_frame_rate: Rate = "auto"
    echo_cancellation: EchoCancellation = "off"
    opening: Annotated[str, Meta(min_length=1)] = "hi"
    max_utterance_s: Positive = 60.0
    max_idle_s: Positive = 1800.0
    max_duration_s: Positive = 86_400.0
    max_sessions: Annotated[int, Meta(ge=1)] = 256
    resume_s: Annotated[float, Meta(ge=0, le=3600)] = 60.0
    max_kept: Annotated[int, Meta(ge=0)] = 64


class TurnConfig(Section, frozen=True):
    """`detection` is what a session has whose client asks for nothing; the others are those of server_vad."""

    detection: Literal["semantic_vad", "server_vad"] = "server_vad"
    threshold: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5
    prefix_padding_ms: Annotated[int, Meta(ge=0, le=5000)] = 300
    silence_duration_ms: Annotated[int, Meta(ge=32, le=10_000)] = 500


class PlayoutConfig(Section, frozen=True):
    lead_ms: Annotated[int, Meta(ge=40, le=10_000)] = 300
    slice_ms: Annotated[int, Meta(ge=20, le=1000)] = 100


_ICE_URL = re.compile(r"stuns?:[^\s?@]+|turns?:[^\s?@]+(?:\?transport=(?:udp|tcp))?")


class IceServerConfig(Section, frozen=True):
    """STUN or TURN. `secret` is coturn's static-auth-secret, from which each caller gets a credential of its own;
    `gather`: agogic asks this server for candidates too, not only its callers."""

    urls: Annotated[tuple[str, ...], Meta(min_length=1)]
    username: str = ""
    credential: str = ""
    secret: str = ""
    gather: bool = False

    def __post_init__(self) -> None:
        for url in self.urls:
            if not _ICE_URL.fullmatch(url):
                raise ValueError(f"{url!r} is no address of a STUN or TURN server such as turn:turn.example.org:3478")
        if self.secret and (self.username or self.credential):
            raise ValueError("`secret` makes `username` and `credential`; set one or the other")


class WebRtcConfig(Section, frozen=True):
    addresses: tuple[str, ...] = ()
    external_addresses: tuple[str, ...] = ()
    ports: tuple[Port, Port] = (0, 0)
    ice_servers: tuple[IceServerConfig, ...] = ()
    ice_lifetime_s: Annotated[int, Meta(ge=30, le=86_400)] = 600
    connect_timeout_s: Positive = 10.0
    disconnected_tolerance_s: Positive = 10.0

    def __post_init__(self) -> None:
        first, last = self.ports
        if (first or last) and not 0 < first <= last:
            raise ValueError(f"`ports` are the first and the last port that may be used, but are {first} and {last}")
        for entry in self.external_addresses:
            for address in entry.split("/", 1):
                try:
                    ipaddress.ip_address(address)
                except ValueError as error:
                    raise ValueError(
                        f'`external_addresses` are "SEEN" or "SEEN/BOUND", but one is {entry!r}'
                    ) from error


class LimitsConfig(Section, frozen=True):
    """Sessions of one key (0: as many as there may be) and of one address (loopback is nobody's: a proxy stands there);
    bytes held in memory by one session, by all of one key, by all."""

    sessions_per_key: Annotated[int, Meta(ge=0)] = 0
    sessions_per_address: Annotated[int, Meta(ge=0)] = 32
    session_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 64 * 1024 * 1024
    key_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 512 * 1024 * 1024
    all_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 1024 * 1024 * 1024


class RecordingConfig(Section, frozen=True):
    """`folder` "" = nothing is recorded. Bytes of a session's file, and of all files in the folder."""

    folder: str = ""
    sound: bool = True
    max_bytes: Annotated[int, Meta(ge=65_536)] = 512 * 1024 * 1024
    max_folder_bytes: Annotated[int, Meta(ge=65_536)] = 8 * 1024 * 1024 * 1024


class TelemetryConfig(Section, frozen=True):
    """`endpoint` "" = what the OTEL_* variables say; `log_format` is that of service and workers."""

    traces: bool = False
    metrics: bool = False
    endpoint: str = ""
    log_format: Literal["text", "json"] = "text"

    def __post_init__(self) -> None:
        if self.endpoint and not re.match(r"https?://[^/\s@]+", self.endpoint):
            raise ValueError(f"`endpoint` is no address such as http://127.0.0.1:4318, but {self.endpoint!r}")


class TwilioConfig(Section, frozen=True):
    auth_token: str = ""


class TelnyxConfig(Section, frozen=True):
    public_key: str = ""


class PlivoConfig(Section, frozen=True):
    auth_token: str = ""


class VonageConfig(Section, frozen=True):
    signature_secret: str = ""
    rate_hz: Literal[8000, 16000, 24000] = 16000


class AudioSocketConfig(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port | None = None
    accept: Literal["registered", "any"] = "registered"


class RegistrarConfig(Section, frozen=True):
    server: str = ""
    username: str = ""
    password: str = ""
    expires_s: Annotated[int, Meta(ge=60, le=86_400)] = 600


class SipConfig(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port | None = None
    public_address: str = ""
    users: dict[str, str] = {}
    trusted: tuple[str, ...] = ()
    max_calls: Annotated[int, Meta(ge=1, le=10_000)] = 64
    rtp_ports: tuple[Port, Port] = (0, 0)
    register: RegistrarConfig = RegistrarConfig()


class WebhookConfig(Section, frozen=True):
    url: str = ""
    secret: str = ""
    decide_within_s: Positive = 20.0


class TelephonyConfig(Section, frozen=True):
    public_url: str = ""
    token: str = ""
    greet: bool = True
    max_idle_s: Positive = 60.0
    lead_ms: Annotated[int, Meta(ge=60, le=2000)] = 240
    twilio: TwilioConfig = TwilioConfig()
    telnyx: TelnyxConfig = TelnyxConfig()
    plivo: PlivoConfig = PlivoConfig()
    vonage: VonageConfig = VonageConfig()
    audiosocket: AudioSocketConfig = AudioSocketConfig()
    sip: SipConfig = SipConfig()
    webhook: WebhookConfig = WebhookConfig()


class ClusterConfig(Section, frozen=True):
    """Workers that several services share, placed and found by Ray. `address`: Ray's, "auto" = of the cluster that runs
    on this machine; `name` tells clusters of one Ray apart; `min_workers`, `max_workers`: bounds between which their
    number follows the load; `idle_s`: one that nobody used for so long may be stopped; `gpus_per_worker` "auto": one
    where there are any; `worker_host`: address at which workers let services in, "" = their machine's; `store_bytes`:
    of all copies of sessions together."""

    enabled: bool = False
    address: str = "auto"
    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}$")] = "agogic"
    min_workers: Annotated[int, Meta(ge=1, le=1024)] = 1
    max_workers: Annotated[int, Meta(ge=1, le=1024)] = 4
    idle_s: Annotated[float, Meta(ge=1)] = 300.0
    cpus_per_worker: Annotated[float, Meta(ge=0)] = 1.0
    gpus_per_worker: Literal["auto"] | Annotated[float, Meta(ge=0)] = "auto"
    worker_host: str = ""
    store_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 1024 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.min_workers > self.max_workers:
            raise ValueError(f"`min_workers` must not be above `max_workers`, {self.max_workers}")


class ServerConfig(Section, frozen=True):
    http: HttpConfig = HttpConfig()
    model: ModelConfig = ModelConfig()
    models: tuple[NamedModel, ...] = ()
    session: SessionConfig = SessionConfig()
    turn: TurnConfig = TurnConfig()
    playout: PlayoutConfig = PlayoutConfig()
    webrtc: WebRtcConfig = WebRtcConfig()
    limits: LimitsConfig = LimitsConfig()
    recording: RecordingConfig = RecordingConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    telephony: TelephonyConfig = TelephonyConfig()
    cluster: ClusterConfig = ClusterConfig()


_SECRET = re.compile(r"http\.(?:api|admin)_keys|webrtc\.ice_servers|telephony\..*(?:token|password|secret|users\b)")
_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)


def parse_config(text: str, source: str = "configuration") -> ServerConfig:
    """Reads TOML. Raises `ConfigError` with one line that names the key, its value and what is allowed."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error
    try:
        return msgspec.convert(raw, ServerConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error), raw)}") from error


def load_config(path: Path | None) -> ServerConfig:
    """The defaults where `path` is None."""
    if path is None:
        return ServerConfig()
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; name a TOML file such as configs/embedded.toml") from error
    return parse_config(text, str(path))


def check_exposure(config: ServerConfig) -> None:
    """Loopback needs no key; any other address does. Raises `ConfigError`."""
    socket = config.telephony.audiosocket
    if socket.port is not None and socket.accept == "any" and not is_loopback(socket.host):
        raise ConfigError(
            f'telephony.audiosocket.accept = "any" lets everybody who reaches {socket.host!r} talk to the agent; '
            'use "registered", or bind 127.0.0.1'
        )
    sip = config.telephony.sip
    if sip.port is not None and not is_loopback(sip.host):
        if not sip.users and not sip.trusted:
            raise ConfigError(
                f"telephony.sip.host = {sip.host!r} is reachable by others but nobody is asked for a password; "
                "set telephony.sip.users or telephony.sip.trusted, or bind 127.0.0.1"
            )
        if sip.host in ("0.0.0.0", "::") and not sip.public_address:
            raise ConfigError(
                f"telephony.sip.host = {sip.host!r} is no address that a phone can answer to; "
                "set telephony.sip.public_address"
            )
    if bool(config.http.certificate) != bool(config.http.private_key):
        raise ConfigError("http.certificate and http.private_key belong together; set both, or neither")
    if config.telephony.webhook.url and not config.telephony.webhook.secret:
        raise ConfigError("telephony.webhook.url is set without telephony.webhook.secret; set what signs the webhooks")
    if config.http.api_keys or config.http.keys_file or is_loopback(config.http.host):
        return
    raise ConfigError(
        f"http.host = {config.http.host!r} is reachable by others but no API key is set; "
        "set http.api_keys or AGOGIC_API_KEY, or bind 127.0.0.1"
    )


def check_models(config: ServerConfig) -> None:
    """Models served side by side are told apart by their names. Raises `ConfigError`."""
    if not config.models:
        return
    if config.model != ModelConfig():
        raise ConfigError("[model] and [[models]] are both set; put what is under [model] into each of [[models]]")
    names = [model.name for model in config.models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"`models`: {twice!r} stands there twice; give each a name of its own")


def secrets_of(config: ServerConfig) -> list[str]:
    """Everything in it that no log may show."""
    phone = config.telephony
    of_calls = (phone.token, phone.twilio.auth_token, phone.plivo.auth_token, phone.vonage.signature_secret)
    of_sip = (*phone.sip.users.values(), phone.sip.register.password, phone.webhook.secret)
    of_turn = (text for server in config.webrtc.ice_servers for text in (server.secret, server.credential))
    http = config.http
    return [secret for secret in (*http.api_keys, *http.admin_keys, *of_calls, *of_sip, *of_turn) if secret]


def check_keys(config: ServerConfig) -> None:
    """A key must be one that a client can send and nobody guesses by sending nothing. Raises `ConfigError`."""
    for where, variable, keys in (
        ("api_keys", "AGOGIC_API_KEY", config.http.api_keys),
        ("admin_keys", "AGOGIC_ADMIN_KEY", config.http.admin_keys),
    ):
        for index, key in enumerate(keys):
            if not key.strip() or key != key.strip() or not key.isascii() or not key.isprintable():
                # Which key it is must not stand in a terminal or a log.
                raise ConfigError(
                    f"http.{where}[{index}] ({variable} comes last) is blank, or has letters that no header carries "
                    "or blanks at an end; use printable ASCII, such as the output of `openssl rand -hex 24`"
                )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _explain(message: str, raw: dict[str, object]) -> str:
    match = _PATH.match(message)
    what, path = (match["what"], match["path"] or "") if match else (message, "")
    unknown = re.match(r"Object contains unknown field `(.*)`", what)
    if unknown:
        key = f"{path}.{unknown[1]}" if path else unknown[1]
        return f"unknown key `{key}`; allowed here: {', '.join(_keys_at(path))}"
    kind = _kind_at(path)
    rule = f"{what[0].lower()}{what[1:]}" if kind is None else f"allowed is {allowed(kind)}"
    shown = "(hidden)" if _SECRET.match(path) else repr(_value_at(raw, path))
    return f"`{path}` = {shown}: {rule}"


def allowed(kind: object) -> str:
    """What a field of this type takes, in words: for errors and for the reference."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f'"{value}"' for value in parts)
    if origin in (Union, UnionType):
        return " or ".join(allowed(part) for part in parts)
    if origin is tuple:
        if ... not in parts:
            return " and ".join(allowed(part) for part in parts)
        is_table = isinstance(parts[0], type) and issubclass(parts[0], msgspec.Struct)
        return f"tables of {', '.join(parts[0].__struct_fields__)}" if is_table else "a list of texts"
    if origin is Annotated:
        return f"{allowed(parts[0])}{_bounds(parts[1])}"
    plain: dict[object, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return plain.get(kind, str(kind))


def _bounds(meta: Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge:g} to {meta.le:g}"
    if meta.ge is not None:
        return f" of at least {meta.ge:g}"
    if meta.gt is not None:
        return f" above {meta.gt:g}"
    return " that is not empty" if meta.min_length else ""


def _kind_at(path: str) -> object:
    """The type of the field, None where the path leads into a list or nowhere."""
    kind: object = ServerConfig
    for part in path.split("."):
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return None
        kind = next((field.type for field in msgspec.structs.fields(kind) if field.encode_name == part), None)
    return None if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else kind


def _keys_at(path: str) -> tuple[str, ...]:
    struct = msgspec.structs.fields(ServerConfig)
    for part in filter(None, path.split(".")):
        kind = next((field.type for field in struct if field.encode_name == part), None)
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return ()
        struct = msgspec.structs.fields(kind)
    return tuple(field.encode_name for field in struct)


def _value_at(raw: object, path: str) -> object:
    for part in filter(None, re.split(r"\.|\[\.*\]|\[(\d+)\]", path)):
        raw = raw.get(part) if isinstance(raw, dict) else raw
    return raw
