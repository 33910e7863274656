// For llama.cpp's build, by -include. GCC 12 declares that _tile_loadconfig reads 8 bytes of the 64 that it does read, so
// that the others may not be stored yet: llama.cpp's AMX path then ends in a general protection fault.
#if defined(__AMX_TILE__) && !defined(__clang__) && __GNUC__ < 13
#include <immintrin.h>
static inline void load_tile_config(const void* config) {
    __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])config));
}
#define _tile_loadconfig load_tile_config
#endif
