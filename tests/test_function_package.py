import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "imports",
    [
        "import palinka.analyses",
        "import palinka.analyses.as_is",
        "from palinka.analyses.as_is import AsIs",
        "from palinka.analyses import as_is",
    ],
)
def test_a_new_module_is_its_function_however_it_is_imported(
    imports: str, tmp_path: object
) -> None:
    script = f"""
import palinka.analyses
palinka.analyses.__path__.append({str(tmp_path)!r})
open({str(tmp_path)!r} + "/as_is.py", "w").write("class AsIs: pass\\ndef as_is(): return 42")
{imports}
assert palinka.analyses.as_is() == 42
assert "as_is" in dir(palinka.analyses)
try:
    palinka.analyses.as_was
except AttributeError as error:
    assert "as_was" in str(error)
else:
    raise SystemExit("found what is not there")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
