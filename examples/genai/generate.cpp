// A bundle in a C++ program, through the C interface of onnxruntime-genai.
//
//   L=$(python -c 'import onnxruntime_genai as g; print(g.__path__[0])')
//   g++ -std=c++17 examples/genai/generate.cpp -o generate "$L/libonnxruntime-genai.so" -Wl,-rpath,"$L"
//   export ORT_LIB_PATH=$(python -c 'import glob, onnxruntime as o; print(*glob.glob(o.__path__[0] + "/capi/lib*.so.*"))')
//   ./generate bundles/demo "def main("
//
// The Python package has the library and no header, so the functions used are declared here. With the C++ release of
// onnxruntime-genai, include its ort_genai_c.h instead.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

extern "C" {
struct OgaResult;
struct OgaModel;
struct OgaTokenizer;
struct OgaTokenizerStream;
struct OgaSequences;
struct OgaGeneratorParams;
struct OgaGenerator;
const char* OgaResultGetError(const OgaResult*);
OgaResult* OgaCreateModel(const char* folder, OgaModel** out);
OgaResult* OgaCreateTokenizer(const OgaModel*, OgaTokenizer** out);
OgaResult* OgaCreateTokenizerStream(const OgaTokenizer*, OgaTokenizerStream** out);
OgaResult* OgaCreateSequences(OgaSequences** out);
OgaResult* OgaTokenizerEncode(const OgaTokenizer*, const char* text, OgaSequences*);
size_t OgaSequencesGetSequenceCount(const OgaSequences*, size_t sequence);
OgaResult* OgaCreateGeneratorParams(const OgaModel*, OgaGeneratorParams** out);
OgaResult* OgaGeneratorParamsSetSearchNumber(OgaGeneratorParams*, const char* name, double value);
OgaResult* OgaCreateGenerator(const OgaModel*, const OgaGeneratorParams*, OgaGenerator** out);
OgaResult* OgaGenerator_AppendTokenSequences(OgaGenerator*, const OgaSequences*);
bool OgaGenerator_IsDone(OgaGenerator*);
OgaResult* OgaGenerator_GenerateNextToken(OgaGenerator*);
OgaResult* OgaGenerator_GetNextTokens(const OgaGenerator*, const int32_t** out, size_t* count);
OgaResult* OgaTokenizerStreamDecode(OgaTokenizerStream*, int32_t token, const char** out);
}

static void check(const OgaResult* failed) {
  if (failed != nullptr) {
    std::fprintf(stderr, "%s\n", OgaResultGetError(failed));
    std::exit(1);
  }
}

int main(int count, char** words) {
  if (count != 3) {
    std::fprintf(stderr, "usage: generate BUNDLE PROMPT\n");
    return 2;
  }
  OgaModel* model;
  OgaTokenizer* tokenizer;
  OgaTokenizerStream* stream;
  OgaSequences* prompt;
  OgaGeneratorParams* params;
  OgaGenerator* generator;
  check(OgaCreateModel(words[1], &model));
  check(OgaCreateTokenizer(model, &tokenizer));
  check(OgaCreateTokenizerStream(tokenizer, &stream));
  check(OgaCreateSequences(&prompt));
  check(OgaTokenizerEncode(tokenizer, words[2], prompt));
  check(OgaCreateGeneratorParams(model, &params));
  check(OgaGeneratorParamsSetSearchNumber(params, "max_length", 32.0 + OgaSequencesGetSequenceCount(prompt, 0)));
  check(OgaCreateGenerator(model, params, &generator));
  check(OgaGenerator_AppendTokenSequences(generator, prompt));
  while (!OgaGenerator_IsDone(generator)) {
    const int32_t* tokens;
    size_t size;
    const char* text;
    check(OgaGenerator_GenerateNextToken(generator));
    check(OgaGenerator_GetNextTokens(generator, &tokens, &size));
    check(OgaTokenizerStreamDecode(stream, tokens[0], &text));
    std::fputs(text, stdout);
    std::fflush(stdout);
  }
  std::puts("");
  std::quick_exit(0);  // nothing to save; the system frees what the library allocated
}
