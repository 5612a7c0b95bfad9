"""Instructions of compiled CUDA kernels, from their disassembly."""

from __future__ import annotations

import collections
import re
from dataclasses import dataclass

_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.M)
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?(\S+)(.*?);", re.M)


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    operands: str


def functions(disassembly: str) -> dict[str, list[Instruction]]:
    """The instructions of each function in what `cuobjdump -sass` prints."""
    pieces = _FUNCTION.split(disassembly)[1:]
    return {name: _instructions(text) for name, text in zip(pieces[::2], pieces[1::2], strict=True)}


def _instructions(text: str) -> list[Instruction]:
    return [Instruction(int(address, 16), name, rest) for address, name, rest in _INSTRUCTION.findall(text)]


def loops(instructions: list[Instruction]) -> list[list[Instruction]]:
    """The bodies of all loops: from the target of a backward branch to the branch."""
    found = []
    for branch in instructions:
        targets = re.findall(r"0x([0-9a-f]+)", branch.operands) if branch.name.startswith("BRA") else []
        if targets and int(targets[-1], 16) < branch.address:
            start = int(targets[-1], 16)
            found.append([one for one in instructions if start <= one.address <= branch.address])
    return found


def hot_loop(instructions: list[Instruction]) -> list[Instruction]:
    """Where the states are: of the innermost loops with exponentials that read no global memory, as those do that
    stage a window, the one with the most; of several, the longest."""
    holders = [loop for loop in loops(instructions) if exponentials(loop) and not _reads_global_memory(loop)]
    inner = [a for a in holders if not any(b is not a and _within(b, a) for b in holders)]
    return max(inner, key=lambda loop: (exponentials(loop), len(loop)))


def _reads_global_memory(instructions: list[Instruction]) -> bool:
    return any(one.name.startswith("LDG") for one in instructions)


def _within(inner: list[Instruction], outer: list[Instruction]) -> bool:
    return outer[0].address <= inner[0].address and inner[-1].address <= outer[-1].address


def exponentials(instructions: list[Instruction]) -> int:
    return sum(one.name == "MUFU.EX2" for one in instructions)


def histogram(instructions: list[Instruction]) -> collections.Counter[str]:
    """How often each kind occurs, without its modifiers."""
    return collections.Counter(one.name.partition(".")[0] for one in instructions)
