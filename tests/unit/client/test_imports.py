import subprocess
import sys


def test_blocking_client_imports_neither_asyncio_nor_torch():
    program = "import sys, teengined.client; print(sorted({'asyncio', 'torch', 'click'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
