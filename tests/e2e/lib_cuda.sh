# What NVIDIA's compiler (NVRTC) made of a plan's kernels; sourced by cuda_compile.sh and tests/cuda-compile.

# nvrtc_version MOEC: "13.0"; nothing where there is none.
nvrtc_version() { "$1" doctor 2>/dev/null | awk '$1 == "ok" && $2 == "NVRTC" { sub(":", "", $3); print $3 }'; }

# cuda_kernels PLAN: a line a kernel, fields divided by tabs: name, registers of a thread, bytes of shared memory of a block, bytes of stack, bytes
# spilled, warnings, and what it computes. From the comments in the plan's kernels.cu.
cuda_kernels() {
  awk -v OFS='\t' '
    function number(word) { return match(line, "[0-9]+ " word) ? substr(line, RSTART) + 0 : 0 }
    function put() { if (name) print name, registers, shared, stack, spilled, warnings, note; name = "" }
    /^\/\* [a-z0-9_]+: [0-9]+ registers, / {
      put(); line = $0; name = $2; sub(":", "", name); note = ""
      registers = number("registers"); shared = number("bytes of shared"); stack = number("bytes of stack")
      spilled = number("bytes spilled"); warnings = number("warnings")
      next
    }
    /^\/\* .* \*\/$/ { if (name) { note = $0; gsub(/^\/\* | \*\/$/, "", note) } }
    /^MOE_KERNEL/ { put() }' "$1/kernels.cu"
}
