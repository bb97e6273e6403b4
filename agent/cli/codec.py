"""`agogic codec`: speech to duration-tagged tokens and back, as files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec
import typer

from agent.cli.measuring import Json, as_json

if TYPE_CHECKING:
    from models.codec.code_file import CodeHeader
    from models.codec.coders import Coder

MIN_RATE_HZ, MAX_RATE_HZ = 1.5625, 12.5

app = typer.Typer(no_args_is_help=True, help="Encode and decode speech tokens.")

Model = Annotated[str, typer.Option(help="'embedded', a directory with a codec, or a hub id")]


class Report(msgspec.Struct, frozen=True):
    """What a file of codes holds; `realised_hz` counts tokens per second."""

    model: str
    speech_s: float
    tokens: int
    realised_hz: float
    quantizers: int
    bits_per_second: float
    bytes: int


@app.command()
def encode(
    sound: Annotated[Path, typer.Argument(help="audio file (WAV, FLAC, Opus), any rate")],
    output: Annotated[Path, typer.Argument(help="where the codes go (.agc)")],
    model: Model = "embedded",
    rate: Annotated[float | None, typer.Option(min=MIN_RATE_HZ, max=MAX_RATE_HZ, help="tokens per second")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="merge neighbours whose similarity is above this")
    ] = None,
    quantizers: Annotated[
        int | None, typer.Option(min=1, help="codes per token, the semantic one included; default 8 or all there are")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="a picture of the tokens over the spectrogram (SVG)")] = None,
    json: Json = False,
) -> None:
    """Turn speech into codes."""
    if rate is not None and threshold is not None:
        raise typer.BadParameter("give --rate or --threshold, not both")
    _check_output(output, ".agc", sound)
    if plot is not None:
        _check_output(plot, ".svg", sound)
    import numpy as np
    import torch

    from models.codec.code_file import CodeFileError, write_codes
    from models.codec.coders import header_of
    from models.codec.token_picture import token_chart
    from streaming.flexicodec.flexicodec import AudioTooShortError
    from worker.audio_files import AudioFileError, read_question

    coder = _load(model)
    if quantizers is not None and quantizers > coder.max_quantizers:
        _refuse(f"{coder.name} has {coder.max_quantizers} quantizers, not {quantizers}; give fewer")
    try:
        audio = read_question(sound)
        target = rate if rate is not None else threshold
        codes = coder.encode(torch.from_numpy(audio), target, quantizers or min(8, coder.max_quantizers))
        header = header_of(coder, codes, len(audio))
        write_codes(output, header, codes)
        if plot is not None:
            plot.write_text(token_chart(audio, np.asarray(codes.durations), sound.name))
    except (AudioFileError, AudioTooShortError, CodeFileError) as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"cannot write {error.filename} ({error.strerror}); choose another place")
    _show(header, output, json)


@app.command()
def decode(
    codes_file: Annotated[Path, typer.Argument(metavar="CODES", help="a file that `codec encode` wrote")],
    output: Annotated[Path, typer.Argument(help="where the sound goes (WAV)")],
    model: Annotated[str | None, typer.Option(help="default: the model named in the file")] = None,
    json: Json = False,
) -> None:
    """Turn codes back into sound."""
    _check_output(output, ".wav", codes_file)
    import numpy as np

    from models.codec.code_file import CodeFileError, read_codes
    from models.codec.coders import INPUT_HZ, check_codes, check_same_model
    from worker.audio_files import AudioFileError, write_reply

    try:
        header, codes = read_codes(codes_file)
        coder = _load(model or header.model)
        check_same_model(coder, header, codes_file)
        check_codes(coder, codes, codes_file)
        # Codes stand for whole frames: the last one is cut, or filled with silence, to what went in.
        samples = round(header.samples * coder.output_hz / INPUT_HZ)
        sound = coder.decode(codes).numpy()[:samples]
        write_reply(output, np.pad(sound, (0, samples - len(sound))), coder.output_hz)
    except (CodeFileError, AudioFileError) as error:
        _refuse(str(error))
    _show(header, codes_file, json)


def _check_output(path: Path, suffix: str, source: Path) -> None:
    """Nothing is written over what is read, nor under the name of another format."""
    if path.suffix.lower() != suffix:
        _refuse(f"{path} would hold a {suffix} file; call it {path.with_suffix(suffix).name}")
    if path.resolve() == source.resolve():
        _refuse(f"{path} is what is to be read; write to another file")


def _load(model: str) -> Coder:
    from models.checkpoints.voice_files import VoiceFileError
    from models.codec.coders import load_coder
    from models.errors import CheckpointError

    try:
        return load_coder(model)
    except (CheckpointError, VoiceFileError) as error:
        _refuse(str(error))


def _show(header: CodeHeader, path: Path, json: bool) -> None:
    report = Report(
        model=header.model,
        speech_s=round(header.seconds, 3),
        tokens=header.groups,
        realised_hz=round(header.rate_hz, 3),
        quantizers=1 + header.acoustic_books,
        bits_per_second=round(header.bits_per_second, 1),
        bytes=path.stat().st_size,
    )
    if json:
        print(as_json(report))
        return
    print(
        f"{report.speech_s:.2f} s in {report.tokens} tokens of {report.quantizers} codes: "
        f"{report.realised_hz:.2f} Hz, {report.bits_per_second:.0f} bit/s"
    )


def _refuse(message: str) -> NoReturn:
    print(f"agogic codec: {message}", file=sys.stderr)
    raise typer.Exit(2)
