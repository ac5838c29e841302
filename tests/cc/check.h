// Assertions for the tests of the C++ cores, which build with a compiler and nothing else.
//
// The first failure ends the program and prints the text and the values of all arguments. Those
// behind the compared ones are context: they tell the cases of a loop apart.
#ifndef TFREC_TESTS_CC_CHECK_H_
#define TFREC_TESTS_CC_CHECK_H_

#include <cmath>
#include <cstdlib>
#include <iomanip>
#include <iostream>

#define CHECK(...) tfrec::Check(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
#define CHECK_EQ(...) tfrec::CheckEqual(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
#define CHECK_NEAR(...) tfrec::CheckNear(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)

namespace tfrec {

template <typename... Values>
[[noreturn]] void Fail(const char* file, int line, const char* text, const Values&... values) {
  std::cerr << file << ':' << line << ": failed: " << text << "; values:" << std::setprecision(17);
  ((std::cerr << ' ' << values), ...);
  std::cerr << std::endl;
  std::exit(1);
}
template <typename... Values>
void Check(const char* file, int line, const char* text, bool condition, const Values&... values) {
  if (!condition) Fail(file, line, text, condition, values...);
}
template <typename A, typename B, typename... Values>
void CheckEqual(const char* file, int line, const char* text, const A& actual, const B& expected,
                const Values&... values) {
  if (!(actual == expected)) Fail(file, line, text, actual, expected, values...);
}
template <typename... Values>
void CheckNear(const char* file, int line, const char* text, double actual, double expected,
               double tolerance, const Values&... values) {
  const bool near = std::abs(actual - expected) <= tolerance;
  if (!near) Fail(file, line, text, actual, expected, tolerance, values...);
}

}  // namespace tfrec

#endif  // TFREC_TESTS_CC_CHECK_H_
