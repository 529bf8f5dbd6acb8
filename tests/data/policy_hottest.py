import json
import sys

sizes = json.loads(sys.stdin.readline())
print('{"ready": true}', flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    load = [sum(step[e] for step in ask["loads"]) for e in range(sizes["experts"])]
    slots, copies = ask["slots"], [0] * sizes["experts"]
    for e in (e for rank in slots for e in rank if e >= 0):
        copies[e] += 1
    for rank in slots:
        for i, held in enumerate(rank):
            others = [e for e in range(sizes["experts"]) if e not in rank]
            if held < 0 and others:
                rank[i] = max(others, key=lambda e: load[e] / copies[e])
                copies[rank[i]] += 1
    print(json.dumps({"slots": slots}), flush=True)
