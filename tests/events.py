"""TensorBoard's event files, read without it."""

from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def scalars(folder: Path, tag: str) -> dict[int, float]:
    """The values of a scalar by step, out of TensorBoard's event files: length, its checksum, the event, its checksum."""
    found = {}
    for file in folder.glob("events.out.tfevents.*"):
        content = file.read_bytes()
        at = 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                if value.tag == tag:
                    found[event.step] = value.simple_value
    return found
