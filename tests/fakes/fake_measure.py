"""A measuring program without torch: answers at once with round figures, or fails where told to.

Devices of the driver `null` have memory of their own; `--host-bytes N` is what the host has for them besides.
"""

import json
import sys

from teengined.core.device import MEASURED_TOKENS


def main() -> int:
    if "--fail" in sys.argv:
        sys.stderr.write("no such device\n")
        return 1
    request = json.loads(sys.stdin.readline())
    sys.stdout.write(json.dumps({"event": "progress", "phase": "compute", "done": 1, "total": 2}) + "\n")
    compute = [
        {"precision": "fp32", "num_tokens": count, "seconds_per_parameter": 1e-9 * count} for count in MEASURED_TOKENS
    ]
    devices = [
        {
            "device_id": device["id"],
            "compute_dtype": "fp32",
            "compute": compute,
            "layer_overhead_seconds": 1e-5,
            "host_to_device_bytes_per_second": 4e9 if device["driver"] == "null" else None,
            "library_versions": ["fake 1"],
        }
        for device in request["devices"]
    ]
    host = {
        "host": "here",
        "disk_read_bytes_per_second": 1e9,
        "memory_read_bytes_per_second": 1e10,
        "memory_bytes": int(sys.argv[sys.argv.index("--host-bytes") + 1]) if "--host-bytes" in sys.argv else 0,
    }
    sys.stdout.write(json.dumps({"event": "done", "devices": devices, "host": host, "links": []}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
