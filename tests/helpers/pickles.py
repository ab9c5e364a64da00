"""PyTorch files around a pickle, and pickles that run code when they are loaded."""

import io
import os
import pickle
import zipfile


def torch_zip(payload, storages=None):
    """Return the bytes of a .pt file around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", payload)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def torch_stream(payload):
    """Return the bytes of a .pt file of the old format around a pickle."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [0x1950A86A20F9469CFC6C, 1001, system]
    return b"".join(pickle.dumps(p, 2) for p in parts) + payload + pickle.dumps([], 2)


class Evil:
    """What a malicious pickle does: call something when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def create_by_open(path):
    """Return an object whose pickle creates a file; those below do it in other ways."""
    return Evil(open, str(path), "w")


def create_by_shell(path):
    return Evil(os.system, f"touch {path}")


def create_by_exec(path):
    return Evil(exec, f"open({str(path)!r}, 'w').close()")
