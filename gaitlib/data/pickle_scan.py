"""What a pickle asks for, read without unpickling it.

Python's unpickler allocates what a pickle names: nine bytes with a large memo index take gigabytes.
"""

import itertools
import pickletools
from pickle import UnpicklingError

#: The most opcodes and memo entries; a pickled array has about 60 and 20.
MAX_OPCODES = MAX_MEMO = 1000
#: The opcodes of a pickled array, in protocols 0 to 5.
OPCODES = frozenset(
    "STOP POP MARK TUPLE EMPTY_TUPLE NONE DUP EMPTY_LIST APPEND APPENDS EMPTY_DICT TUPLE1 TUPLE2 "
    "TUPLE3 NEWTRUE NEWFALSE EMPTY_SET ADDITEMS FROZENSET NEWOBJ STACK_GLOBAL MEMOIZE REDUCE BUILD "
    "SETITEM SETITEMS NEXT_BUFFER READONLY_BUFFER PROTO BININT1 BININT2 BININT BINGET "
    "LONG_BINGET BINPUT LONG_BINPUT BINFLOAT FRAME INT LONG STRING UNICODE PUT GET FLOAT GLOBAL "
    "LONG1 SHORT_BINSTRING SHORT_BINUNICODE SHORT_BINBYTES LONG4 BINSTRING BINUNICODE BINBYTES "
    "BINUNICODE8 BINBYTES8 BYTEARRAY8".split()
)


def scan_pickle(content: bytes) -> None:
    """Check that unpickling takes little more memory than the pickle itself.

    Raises:
        UnpicklingError: if it is truncated, has an opcode that no array needs, more than
            MAX_OPCODES, or a memo index above MAX_MEMO.
    """
    try:
        opcodes = list(itertools.islice(pickletools.genops(content), MAX_OPCODES + 1))
    except ValueError as error:
        raise UnpicklingError(f"pickle data was truncated or damaged: {error}") from error
    if len(opcodes) > MAX_OPCODES:
        raise UnpicklingError(f"it has more than {MAX_OPCODES} opcodes, which no array needs")
    for opcode, argument, _ in opcodes:
        if opcode.name not in OPCODES:
            raise UnpicklingError(f"it has the opcode {opcode.name}, which no array needs")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= argument <= MAX_MEMO:
            raise UnpicklingError(f"it asks for memo entry {argument}, which no array needs")
