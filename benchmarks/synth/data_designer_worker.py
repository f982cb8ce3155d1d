"""NeMo Data Designer on prompts of a file, in its own environment.

Usage: PORT CONCURRENCY PROMPTS OUT, with NEMO_TELEMETRY_ENABLED=false in the environment.
"""

import json
import sys
from pathlib import Path

import data_designer.config as dd
import pandas as pd
from data_designer.interface import DataDesigner


def main() -> None:
    """Complete every prompt and print how many came back."""
    port, concurrency, prompts, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    texts = json.loads(Path(prompts).read_text())
    local = dd.ModelProvider(name="local", endpoint=f"http://127.0.0.1:{port}/v1", api_key="none")
    designer = DataDesigner(artifact_path=out, model_providers=[local])
    settings = dd.ChatCompletionInferenceParams(max_parallel_requests=concurrency, max_tokens=64)
    model = dd.ModelConfig(alias="m", model="m", provider="local", inference_parameters=settings)
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    seeds = pd.DataFrame({"instruction": texts})
    builder.with_seed_dataset(dd.DataFrameSeedSource(df=seeds))
    builder.add_column(
        dd.LLMTextColumnConfig(name="generation", model_alias="m", prompt="{{ instruction }}")
    )
    made = designer.create(builder, num_records=len(texts), dataset_name="bench").load_dataset()
    print(json.dumps({"rows": len(made), "said": int(made["generation"].notna().sum())}))


if __name__ == "__main__":
    main()
