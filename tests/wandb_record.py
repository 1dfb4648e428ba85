"Read W&B's offline record: a LevelDB log of protocol buffers, whose messages are W&B's own."
import struct

BLOCK, HEADER = 32768, struct.Struct("<IHB")  # checksum, length, kind: 1 whole, 2 first, 3 middle, 4 last


def read_records(path):
    "Every record of a `.wandb` file."
    from wandb.proto import wandb_internal_pb2
    data, at, parts = path.read_bytes(), 7, []
    assert data[:4] == b":W&B"
    while at + HEADER.size <= len(data):
        if BLOCK - at % BLOCK < HEADER.size: at += BLOCK - at % BLOCK; continue
        _, length, kind = HEADER.unpack_from(data, at)
        parts.append(data[at + HEADER.size:at + HEADER.size + length])
        at += HEADER.size + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(b"".join(parts))
            parts = []
