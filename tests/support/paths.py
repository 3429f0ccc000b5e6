"""Signs that the path of a clone may hold."""

from __future__ import annotations

ASCII = [chr(code) for code in range(32, 127) if chr(code) not in "/:"]
SCRIPTS = ["ж", "Ω", "漢", "e\u0301", "🙂"]  # three scripts, a combining mark, and a sign outside the basic plane
HOSTILE = "".join([*ASCII, *SCRIPTS, " "])  # a folder that holds all of them, with a space at both ends
SIGNS = [*ASCII, *SCRIPTS, "%41", "'\"", "a.git", HOSTILE]
