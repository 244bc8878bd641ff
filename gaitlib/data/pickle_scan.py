"""What a pickle asks for, read without unpickling it.

Python's unpickler allocates what a pickle names: nine bytes with a large memo index take gigabytes.
"""

import struct
from pickle import UnpicklingError

#: The most opcodes and memo entries; a pickled array has about 60 and 20.
MAX_OPCODES = MAX_MEMO = 1000

#: Bytes of argument, by opcode: those of a pickled array, in protocols 0 to 5.
_FIXED = dict.fromkeys(b".0(t)N2]ae}\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94Rb\x81us\x97\x98", 0)
_FIXED |= dict.fromkeys(b"\x80Kqh", 1) | {b"M"[0]: 2} | dict.fromkeys(b"Jrj", 4)
_FIXED |= dict.fromkeys(b"G\x95", 8)
#: Opcodes whose argument ends with a newline, and how many of them.
_LINES = dict.fromkeys(b"ILSVpgF", 1) | {b"c"[0]: 2}
#: Opcodes whose argument begins with its length, and how that is written.
_COUNTED = {
    **dict.fromkeys(b"\x8aU\x8cC", struct.Struct("<B")),
    **dict.fromkeys(b"\x8bTXB", struct.Struct("<I")),
    **dict.fromkeys(b"\x8d\x8e\x96", struct.Struct("<Q")),
}
_STOP, _PUT, _LONG_BINPUT = b".pr"
_INDEX = struct.Struct("<I")


def scan_pickle(content: bytes) -> None:
    """Check that unpickling takes little more memory than the pickle itself.

    Raises:
        UnpicklingError: if it is truncated, has an opcode that no array needs, more than
            MAX_OPCODES, or a memo index above MAX_MEMO.
    """
    at = 0
    for _ in range(MAX_OPCODES):
        if at >= len(content):
            raise UnpicklingError("pickle data was truncated")
        opcode, begins = content[at], at + 1
        if opcode == _STOP:
            return
        if (size := _FIXED.get(opcode)) is not None:
            at = begins + size
            if opcode == _LONG_BINPUT and at <= len(content):
                _check_memo(_INDEX.unpack_from(content, begins)[0])
        elif (counted := _COUNTED.get(opcode)) is not None:
            at = begins + counted.size
            if at <= len(content):
                at += counted.unpack_from(content, begins)[0]
        elif (lines := _LINES.get(opcode)) is not None:
            at = begins
            for _ in range(lines):
                at = content.find(b"\n", at) + 1 or len(content) + 1
            if opcode == _PUT:
                number = content[begins : at - 1]
                _check_memo(int(number) if number.isdigit() and len(number) < 10 else -1)
        else:
            raise UnpicklingError(f"it has the opcode {bytes([opcode])!r}, which no array needs")
        if at > len(content):
            raise UnpicklingError("pickle data was truncated")
    raise UnpicklingError(f"it has more than {MAX_OPCODES} opcodes, which no array needs")


def _check_memo(index: int) -> None:
    if not 0 <= index <= MAX_MEMO:
        raise UnpicklingError(f"it asks for memo entry {index}, which no array needs")
