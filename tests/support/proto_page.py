"""docs/reference/proto.md, out of the .proto files and their comments.

python -m tests.support.proto_page    # writes it
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from google.protobuf import descriptor_pb2 as pb

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "reference" / "proto.md"
SOURCES: Final = ROOT / "proto"

_TOP: Final = """# Calls and messages

Every gRPC service, its calls and messages. This page is written from the .proto files in
`proto/lexico_proto/v1` by `python -m tests.support.proto_page`, and a test compares them. Both
servers offer reflection, so that `grpcurl` and the like find all of it there too.
[Format](../format.md) has the bytes inside of the messages, [failures](../failures.md) the errors.
"""
_TYPES: Final = pb.FieldDescriptorProto


def page() -> str:
    """The page."""
    return "\n".join([_TOP, *_lines(_described())]) + "\n"


def _described() -> list[pb.FileDescriptorProto]:
    """The files with their comments, those with services first."""
    from grpc_tools import protoc

    files = sorted(SOURCES.glob("lexico_proto/v1/*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "described"
        options = ["--include_source_info", f"--descriptor_set_out={out}"]
        names = [str(file.relative_to(SOURCES)) for file in files]
        if protoc.main(["protoc", f"-I{SOURCES}", *options, *names]) != 0:
            raise SystemExit("protoc failed; its message is above")
        described = pb.FileDescriptorSet.FromString(out.read_bytes())
    return sorted(described.file, key=lambda file: not file.service)


def _lines(files: list[pb.FileDescriptorProto]) -> Iterator[str]:
    for file in files:
        said = {
            tuple(place.path): " ".join(place.leading_comments.split())
            for place in file.source_code_info.location
        }
        for at, service in enumerate(file.service):
            yield f"## {service.name}\n"
            if said.get((6, at)):
                yield _sentence(said[6, at])
            yield "| call | takes | gives | what |"
            yield "|---|---|---|---|"
            for index, call in enumerate(service.method):
                takes = _of_call(call.input_type, call.client_streaming)
                gives = _of_call(call.output_type, call.server_streaming)
                what = said.get((6, at, 2, index), "")
                yield f"| `{call.name}` | {takes} | {gives} | {what} |"
            yield ""
        if not file.service:
            yield "## Shared messages\n"
        for at, message in enumerate(file.message_type):
            yield from _message(message, (4, at), said)
        for at, enum in enumerate(file.enum_type):
            yield from _enum(enum, (5, at), said)


def _message(
    message: pb.DescriptorProto, place: tuple[int, ...], said: dict[tuple[int, ...], str]
) -> Iterator[str]:
    yield f"### {message.name}\n"
    if said.get(place):
        yield _sentence(said[place])
    if not message.field:
        yield "No fields.\n"
        return
    yield "| number | field | type | what |"
    yield "|---|---|---|---|"
    for index, field in enumerate(message.field):
        what = said.get((*place, 2, index), "")
        yield f"| {field.number} | `{field.name}` | {_type(field, message)} | {what} |"
    yield ""
    for index, inner in enumerate(message.nested_type):
        if not inner.options.map_entry:
            yield from _message(inner, (*place, 3, index), said)


def _enum(
    enum: pb.EnumDescriptorProto, place: tuple[int, ...], said: dict[tuple[int, ...], str]
) -> Iterator[str]:
    yield f"### {enum.name}\n"
    if said.get(place):
        yield _sentence(said[place])
    yield "| number | value | what |"
    yield "|---|---|---|"
    for index, value in enumerate(enum.value):
        yield f"| {value.number} | `{value.name}` | {said.get((*place, 2, index), '')} |"
    yield ""


def _type(field: pb.FieldDescriptorProto, message: pb.DescriptorProto) -> str:
    if field.type in (_TYPES.TYPE_MESSAGE, _TYPES.TYPE_ENUM):
        name = _short(field.type_name)
    else:
        name = _TYPES.Type.Name(field.type).removeprefix("TYPE_").lower()
    many = "repeated " if field.label == _TYPES.LABEL_REPEATED else ""
    if field.HasField("oneof_index") and not field.proto3_optional:
        return f"{name}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return f"{'optional ' if field.proto3_optional else many}{name}"


def _of_call(name: str, many: bool) -> str:
    return f"{'stream of ' if many else ''}{_short(name)}"


def _short(name: str) -> str:
    return f"`{name.rsplit('.', 1)[-1]}`" if not name.startswith(".google") else f"`{name[1:]}`"


def _sentence(text: str) -> str:
    return f"{text}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
