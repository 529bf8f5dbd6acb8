# cmake -DDIR=codegen/cuda/device -DOUT=FILE.c -P embed.cmake: the files DIR/*.cuh as C arrays, and a table of them by name
# (codegen/cuda/module.c). Arrays of numbers, since string literals of that length are no standard C.
file(GLOB files ${DIR}/*.cuh)
list(SORT files)
set(arrays "")
set(rows "")
foreach(file ${files})
  get_filename_component(name ${file} NAME_WE)
  file(READ ${file} hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
  string(APPEND arrays "static const unsigned char ${name}_text[] = {\n${bytes}0};\n")
  string(APPEND rows "    {\"${name}\", ${name}_text},\n")
endforeach()
file(WRITE ${OUT} "/* Made by codegen/cuda/embed.cmake from codegen/cuda/device/. */
#include \"codegen/cuda/module.h\"

${arrays}
const MoeCudaPartText moe_cuda_part_texts[] = {
${rows}    {0, 0},
};
")
