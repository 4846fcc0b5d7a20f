import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from chat_server import KEY, serving
from palinka.__main__ import main

SIZES = {"context_length": 32, "train_tokens": 128, "batch_size": 64}


def test_latents_are_explained_and_an_atlas_shows_it(
    workspace: Path, refused: Any, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    line = [f"--data.{name}={size}" for name, size in SIZES.items()]
    line += ["--data.validation_tokens=10240", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    sizes = ["--model.autoencoder.latent_dim=256", "--model.autoencoder.k=4"]
    assert main(["fit", *line, *sizes, "--quiet"]) == 0
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for options, expected in (
        ("", "the variable OPENAI_API_KEY is empty; set it, or name another with --key_env"),
        ("--budget=1", "budget needs prices; give --price_in and --price_out"),
        ("--base_url=http://localhost:9 --control=none", "none is not an explanations.json of"),
    ):
        away = "explain --ckpt_path=last --model=m --base_url=https://example.org"
        assert expected in refused(*away.split(), *options.split())
    monkeypatch.setenv("MY_KEY", KEY)
    given = ["explain", "--ckpt_path=last", "--model=<b>rule", "--latents=3", "--key_env=MY_KEY"]
    output = workspace / "lightning_logs" / "version_0" / "explanations"
    with serving() as server:
        given.append(f"--base_url={server.url}")
        assert main([*given, "--dry_run", "--price_in=2"]) == 0
        assert server.requests == []
        out = capsys.readouterr().out
        assert f"3 latents, <b>rule at {server.url[7:-3]}: at most 273 requests, about" in out
        assert "cost about 0." in out
        answer, server.answer = server.answer, lambda *_: "no"
        assert main(given) == 1
        assert "100 % of the answers could not be read; the scores" in capsys.readouterr().err
        assert not (output / "explanations.json").exists()
        server.answer = answer
        assert main([*given, "--seed=1"]) == 0
        sent = len(server.requests)
        assert main([*given, "--seed=1"]) == 0
        assert len(server.requests) == sent
        assert main([*given, "--seed=1", "--control=random_dictionary", "--output=beside"]) == 0
        assert len(server.requests) > 2 * sent  # the answers are kept in another folder
    out = capsys.readouterr().out
    assert "6 latents, <b>rule at" in out
    beside = json.loads((workspace / "beside" / "explanations.json").read_text())
    assert len(beside["latents"]) == 3
    values = {value["metric"]: value for value in beside["values"]}
    assert values["control"]["n"] == {"latents": 3}
    gap = values["detection"]["value"] - values["control"]["value"]
    assert values["detection - control"]["value"] == pytest.approx(gap)
    assert re.search(r"intruder - mixed +nan  \(none: fewer than 8 latents\)", out)
    named = f"--explanations={output / 'explanations.json'}"
    assert main(["export", "--ckpt_path=last", "--format=neuronpedia", "--output=np", named]) == 0
    files = (workspace / "np").rglob("explanations/*.gz")
    content = b"".join(gzip.decompress(file.read_bytes()) for file in files)
    lines = [json.loads(line) for line in content.splitlines()]
    record = json.loads((output / "explanations.json").read_text())
    assert (len(record["latents"]), record["latent_dim"]) == (3, 256)
    assert all(value["unit"] == ["latents"] for value in record["values"])
    texts = {latent: one["text"] for latent, one in record["latents"].items()}
    assert {line["index"]: line["description"] for line in lines} == texts
    assert not any(KEY.encode() in file.read_bytes() for file in output.rglob("*.json"))
    shown = ["atlas", "--ckpt_path=last", "--output=atlas", "--data.validation_tokens=320"]
    shown.append(named)
    assert main(shown) == 0
    labels = json.loads(f"[{(workspace / 'atlas/data/labels.js').read_text()[16:-3]}]")[1]
    for latent, one in record["latents"].items():
        assert labels[int(latent)] == one["text"]
    overview = (workspace / "atlas/data/overview.js").read_text()
    assert '"explanations/detection"' in overview
    assert '"explanations/intruder"' in overview
    text = "".join(path.read_text() for path in (workspace / "atlas/data").glob("latents-*.js"))
    assert r'"model":"\u003cb>rule"' in text
    (output / "explanations.json").write_text(json.dumps({**record, "sha256": "0"}))
    assert "explains another dictionary, of 256 latents of blocks.3.mlp.pre" in refused(*shown)
