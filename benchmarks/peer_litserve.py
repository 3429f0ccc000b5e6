"""The same model under LitServe, which answers requests that wait together, for benchmarks/serving.py.

python -m benchmarks.peer_litserve BUNDLE PORT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve

from remint.serving.model import load


class Sampler(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = load(Path(sys.argv[1]))

    def decode_request(self, request: dict[str, int]) -> int:
        return request["seed"]

    def batch(self, inputs: list[int]) -> list[int]:
        return inputs

    def predict(self, seeds: list[int]) -> Any:
        return self.model.draw([(seed, 0) for seed in seeds])[0]

    def unbatch(self, output: Any) -> list[Any]:
        return [*output]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"values": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Sampler(max_batch_size=64, batch_timeout=0.002), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
