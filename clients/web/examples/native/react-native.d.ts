/** The part of react-native that the example touches: the package itself is too large to be installed for a type check. */
declare module "react-native" {
  import type { FC, ReactNode } from "react";

  export const Button: FC<{ title: string; onPress: () => void }>;
  export const SafeAreaView: FC<{ children?: ReactNode }>;
  export const Text: FC<{ children?: ReactNode }>;
}
