"""distilabel on prompts of a file, in its own environment. Usage: PORT CONCURRENCY PROMPTS OUT."""

import json
import sys
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def main() -> None:
    """Complete every prompt and print how many came back."""
    port, concurrency, prompts, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    rows = [{"instruction": text} for text in json.loads(Path(prompts).read_text())]
    llm = OpenAILLM(
        model="m",
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key="none",
        generation_kwargs={"max_new_tokens": 64},
    )
    with Pipeline(name="bench", cache_dir=out) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=concurrency)
        ask = TextGeneration(llm=llm, input_batch_size=concurrency)
        load >> ask
    made = pipeline.run(use_cache=False)["default"]["train"]
    said = sum(text is not None for text in made["generation"])
    print(json.dumps({"rows": len(made), "said": said}))


if __name__ == "__main__":
    main()
