"""bespokelabs-curator on prompts of a file, in its own environment.

Usage: PORT CONCURRENCY PROMPTS OUT, with OPENAI_API_KEY, TELEMETRY_ENABLED=False and
CURATOR_VIEWER=0 in the environment. It fetches tiktoken's files from the internet before any
request, and ends where there is none; here they are replaced by counting words.
"""

import json
import sys
from pathlib import Path

import tiktoken


class _Words:
    def encode(self, text: str, **_: object) -> list[str]:
        return text.split()


def main() -> None:
    """Complete every prompt and print how many came back."""
    tiktoken.get_encoding = tiktoken.encoding_for_model = lambda name: _Words()
    from bespokelabs import curator

    class Ask(curator.LLM):
        def prompt(self, row: dict) -> str:
            return row["instruction"]

        def parse(self, row: dict, response: str) -> dict:
            return {"generation": response}

    port, concurrency, prompts, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    rows = [{"instruction": text} for text in json.loads(Path(prompts).read_text())]
    ask = Ask(
        model_name="m",
        backend="openai",
        backend_params={
            "base_url": f"http://127.0.0.1:{port}/v1",
            "api_key": "none",
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 10_000_000_000,
            "max_concurrent_requests": concurrency,
        },
    )
    made = ask(rows, working_dir=out)
    made = getattr(made, "dataset", made)
    print(json.dumps({"rows": len(made), "said": len(made)}))


if __name__ == "__main__":
    main()
