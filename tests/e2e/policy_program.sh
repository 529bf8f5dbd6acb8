#!/usr/bin/env bash
# Placement policies that are programs (docs/ADD_A_POLICY.md): the example of the documentation is the one that is tested, works in the
# laboratory, and what programs do wrong is refused with one line while the replay goes on.
. "$(dirname "$0")/lib.sh"

TRACE=tests/data/traces/mixtral_e8k2.csv
place() { "$MOEC" place "$TRACE" --ranks 8 --extra-slots 1 -o json --policy program --program "$1"; }
# column NAME FILE: what the report says of the one policy.
column() { python3 -c "
import json, sys
def find(v):
    if isinstance(v, dict):
        if sys.argv[1] in v: return v[sys.argv[1]]
        v = list(v.values())
    if isinstance(v, list):
        for x in v:
            r = find(x)
            if r is not None: return r
print(find(json.load(open(sys.argv[2]))))" "$1" "$2"; }

sed -n '/^```python$/,/^```$/p' docs/ADD_A_POLICY.md | sed '1d;$d' >"$WORK/doc.py"
expect "the documentation shows the example that is tested" cmp "$WORK/doc.py" tests/data/policy_hottest.py

place "python3 tests/data/policy_hottest.py" >"$WORK/good.json" 2>"$WORK/err" || not_ok "the example runs" "$WORK/err"
expect "the example fills the 32 extra slots, and nothing is refused" \
  test "$(column arrivals "$WORK/good.json") $(column refused "$WORK/good.json")" = "32 0"

place "read h; echo '{\"ready\":true}'; while read a; do echo nonsense; done" >"$WORK/bad.json" 2>"$WORK/err" || not_ok "nonsense is survived" "$WORK/err"
expect "nonsense is refused each time" \
  test "$(column arrivals "$WORK/bad.json") $(column refused "$WORK/bad.json")" = "0 $(column decisions "$WORK/bad.json")"

place "read h; echo '{\"ready\":true}'; read a; exit 1" >"$WORK/ends.json" 2>"$WORK/err" || not_ok "an end is survived" "$WORK/err"
expect "a program that ends is refused" test "$(column refused "$WORK/ends.json")" = "$(column decisions "$WORK/ends.json")"

refuses "a program that cannot start" "1 2" "exit code 127" place "no-such-policy-program 2>/dev/null"
refuses "policy program without one" "1 2" "--program|which program" "$MOEC" place "$TRACE" --ranks 8 --policy program
done_testing
