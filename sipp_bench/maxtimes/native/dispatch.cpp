// The library's whole interface: plain C, one entry an operation, the instruction set chosen when it runs.
#include "problem.hpp"

#define EXPORT extern "C" __attribute__((visibility("default")))
#define DECLARE(variant)                                          \
  extern "C" int sipp_max_product_##variant(const Problem*);      \
  extern "C" void sipp_survey_##variant(Survey*);

#if defined(SIPP_HAS_avx512)
DECLARE(sse2)
DECLARE(avx2)
DECLARE(avx512)
#else
DECLARE(portable)
#endif

namespace {

struct Variant {
  const char* name;
  bool (*runs)();
  int (*max_product)(const Problem*);
  void (*survey)(Survey*);
};

#if defined(SIPP_HAS_avx512)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
const Variant variants[] = {
    {"avx512", has_avx512, sipp_max_product_avx512, sipp_survey_avx512},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, sipp_max_product_avx2,
     sipp_survey_avx2},
    {"sse2", [] { return true; }, sipp_max_product_sse2, sipp_survey_sse2},
};
#else
const Variant variants[] = {{"portable", [] { return true; }, sipp_max_product_portable, sipp_survey_portable}};
#endif
constexpr int COUNT = sizeof variants / sizeof variants[0];

}  // namespace

// Changes with the structs; Python refuses a library of another version.
EXPORT int sipp_version() { return 1; }
EXPORT int sipp_variants() { return COUNT; }
EXPORT const char* sipp_variant_name(int variant) { return variants[variant].name; }
EXPORT int sipp_variant_runs(int variant) { return variants[variant].runs(); }
EXPORT int sipp_max_product(int variant, const Problem* problem) { return variants[variant].max_product(problem); }
EXPORT void sipp_survey(int variant, Survey* survey) { variants[variant].survey(survey); }
